"""Turn the authors' checkpoint (pbelcak/UltraFastBERT-*) into a model folder that transformers 5 reads."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse

from cramming.convert.ultrafast import convert_folder
from cramming.door import door, path_argument


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=path_argument, help="folder with model.safetensors or pytorch_model.bin")
    parser.add_argument("out", type=path_argument, help="folder to write; must not exist, or be empty")
    parser.add_argument("--trees", type=int, default=1, help="parallel trees of a layer (default 1)")
    parser.add_argument("--heads", type=int, default=None, help="attention heads (default: width / 64)")
    arguments = parser.parse_args()
    with door():
        model = convert_folder(arguments.checkpoint, arguments.out, trees=arguments.trees, heads=arguments.heads)
    print(f"{model.num_parameters():,} parameters written to {arguments.out}")
    print(f"next: AutoModelForMaskedLM.from_pretrained({str(arguments.out)!r}) after `import cramming.model`")


if __name__ == "__main__":
    main()
