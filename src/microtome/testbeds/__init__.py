"""Floor 4, testbeds: models and data whose right answers are known."""
