export const palette = {
  "light": {
    "diverging": ["#7a2d04", "#c25a12", "#ee9f5b", "#f9dcc0", "#f7f6f3", "#cbe0f2", "#76b0de", "#2a73b4", "#0b3a70"],
    "sequential": ["#f7f6f1", "#d3e7dc", "#94cabf", "#4f9fa8", "#2b6f93", "#203f73", "#1c1d4a"]
  },
  "dark": {
    "diverging": ["#ffd7ae", "#f7a35c", "#c9691f", "#6d3a15", "#23262c", "#163f63", "#2274b3", "#69aee6", "#c3e2ff"],
    "sequential": ["#23262c", "#203c5c", "#22608a", "#2f8799", "#5bae9d", "#a3d3a8", "#f0f3c4"]
  }
};
