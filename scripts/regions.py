"""Look inside a checkpoint: one HTML page of where its FFF layers send the tokens of a text. No network."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
from pathlib import Path

from cramming.door import door, path_argument
from cramming.regions.measure import measure
from cramming.regions.page import check_page, write_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=path_argument, help="a run's folder, or the model folder in it")
    parser.add_argument("text", type=path_argument, help="UTF-8 text to send through the model")
    parser.add_argument("--out", type=path_argument, default=Path("regions.html"), help="page (default regions.html)")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of the text at most (default 65536)")
    arguments = parser.parse_args()
    with door():
        check_page(arguments.out)
        regions = measure(arguments.checkpoint, arguments.text, arguments.tokens)
        size = write_page(regions, arguments.out)
    part = "all" if regions.probe.whole else "the beginning"
    print(f"tokens     {len(regions.probe.ids):,}, {part} of {arguments.text}")
    print(f"layers     {len(regions.layers)} of FFF, in {regions.run}")
    print(f"written    {arguments.out} ({size / 1e6:.1f} MB)")
    print("next       open it in a browser; fff.regions.edit_leaf edits a region you found")


if __name__ == "__main__":
    main()
