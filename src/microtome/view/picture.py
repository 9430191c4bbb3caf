"""How does a shape become a picture? `png(shape)` has a Chromium on this machine draw it, without a network.

1. The shape's HTML is opened once, to learn how tall the finished figure is.
2. It is opened again in a window of that size, and the window is saved.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microtome.core.errors import InputError
from microtome.core.shapes import Shape
from microtome.view.page import html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=10000"
).split()
_BARE = (
    "<style>body{margin:0}body .microtome{margin:0;padding:16px}body .microtome .box{max-height:none}</style>"
)
_MEASURE = (
    "<script type=module>addEventListener('drawn', () => document.body.dataset.height = "
    "Math.ceil(document.querySelector('figure').getBoundingClientRect().height))</script>"
)


def browser() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def png(
    shape: Shape,
    width: int = 900,
    state: Mapping[str, Any] | None = None,
    scale: float = 2.0,
    dark: bool = False,
) -> bytes:
    """A PNG of the drawn shape, `width` CSS pixels wide, `scale` device pixels each.

    Raises `InputError` when no Chromium is found, or when it does not deliver.
    """
    if browser() is None:
        raise InputError(
            f"a PNG needs one of {', '.join(BROWSERS)} on the PATH, and none is there. Install one, or save "
            "html(shape) to a file and open that in any browser"
        )
    text = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    text += f"<body>{_MEASURE}{html(shape, state)}{_BARE}"
    look = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with tempfile.TemporaryDirectory() as folder:
        file, picture = Path(folder, "shape.html"), Path(folder, "shape.png")
        file.write_text(text, "utf-8")
        drawn = open_page(file, "--dump-dom", f"--window-size={width},900", *look).stdout
        found = re.search(r'data-height="(\d+)"', drawn)
        if not found:
            raise InputError(f"the browser {browser()} opened the figure {shape.title!r} but did not draw it")
        size = f"--window-size={width},{found[1]}"
        open_page(file, f"--screenshot={picture}", size, f"--force-device-scale-factor={scale}", *look)
        return picture.read_bytes()


def open_page(file: Path, *flags: str, state: str = "") -> subprocess.CompletedProcess[str]:
    """Run the browser over a local file (and what follows `#`) with a fresh profile; what it prints comes back."""
    found = browser()
    if found is None:
        raise InputError(f"none of {', '.join(BROWSERS)} is on the PATH")
    with tempfile.TemporaryDirectory() as profile:
        command = [found, *_FLAGS, f"--user-data-dir={profile}", *flags, f"{file.resolve().as_uri()}#{state}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
