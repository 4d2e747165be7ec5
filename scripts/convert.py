"""Turn the authors' checkpoint (pbelcak/UltraFastBERT-*) into a model folder that transformers 5 reads."""

import argparse
import sys
from pathlib import Path

from cramming.convert.ultrafast import convert_folder
from cramming.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with model.safetensors or pytorch_model.bin")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--trees", type=int, default=1, help="parallel trees of a layer (default 1)")
    parser.add_argument("--heads", type=int, default=None, help="attention heads (default: width / 64)")
    arguments = parser.parse_args()
    try:
        model = convert_folder(arguments.checkpoint, arguments.out, trees=arguments.trees, heads=arguments.heads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{model.num_parameters():,} parameters written to {arguments.out}")
    print(f"next: AutoModelForMaskedLM.from_pretrained({str(arguments.out)!r}) after `import cramming.model`")


if __name__ == "__main__":
    main()
