"""Deal the documents of prepared data to workers by the subtrees of a first model; train.documents=OUT reads them."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse

from cramming.door import door, path_argument
from cramming.regions.documents import sort_documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=path_argument, help="a prepared folder, as scripts/prepare.py names it")
    parser.add_argument("checkpoint", type=path_argument, help="the first model: a run's folder, or the model's in it")
    parser.add_argument("out", type=path_argument, help="folder to write, one prepared folder for each worker in it")
    parser.add_argument("--workers", type=int, default=2, help="a power of two (default 2)")
    parser.add_argument("--levels", type=int, default=4, help="down to which it is told how documents part (default 4)")
    parser.add_argument("--tree", help="the tree that decides (default: that in which the workers' tokens part most)")
    asked = parser.parse_args()
    with door():
        told = sort_documents(
            asked.data, asked.checkpoint, asked.out, workers=asked.workers, levels=asked.levels, tree=asked.tree
        )
    print("| tree | level | a document's tokens in one node | of all text | workers apart | by chance |")
    print("|---|---|---|---|---|---|")
    for name, rows in told["figures"]["trees"].items():
        for row in rows:
            cells = " | ".join(f"{row[key]:.1%}" for key in ("document", "all", "apart", "by_chance"))
            print(f"| {name} | {row['level']} | {cells} |")
    print(f"decided    by {told['tree']} of {told['by']}")
    for worker, documents in enumerate(told["figures"]["documents"]):
        print(f"worker {worker}   {documents:,} documents, {told['figures']['tokens'][worker]:,} tokens")
    print(f"written    {asked.out}; train with train.sync=outer train.documents={asked.out}")


if __name__ == "__main__":
    main()
