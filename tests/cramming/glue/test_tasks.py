"""The table of tasks and the reader of the official TSV files."""

from dataclasses import replace

import numpy as np
import pytest

from cramming.errors import UserError
from cramming.glue.config import GlueConfig
from cramming.glue.sources import Split, TaskData, hub_split, limited, load_local, read_tsv
from cramming.glue.tasks import GLUE_TASKS, chosen_tasks, suite_tasks

TASKS = suite_tasks("glue")


def write(folder, content: str | bytes, name="train.tsv"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_table_has_the_nine_tasks_with_their_scores_and_weights():
    assert len(GLUE_TASKS) == 9
    assert {n: t.headline for n, t in TASKS.items() if t.headline != "accuracy"} == {
        "mrpc": "f1",
        "qqp": "f1",
        "stsb": "pearson",
        "cola": "matthews",
    }
    assert {n: t.weight for n, t in TASKS.items() if t.weight != 1} == {"mnli": 2, "wnli": 0}
    assert {n: t.epochs for n, t in TASKS.items() if t.epochs != 5} == {"cola": 15}
    assert TASKS["stsb"].regression
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert [name for name, _, _ in TASKS["mnli"].dev] == ["matched", "mismatched"]
    assert TASKS["rte"].hub_columns == ("sentence1", "sentence2")
    assert all(len(t.local_labels) == len(t.labels) for t in GLUE_TASKS)


def test_default_tasks_leave_out_wnli_and_keep_the_order_asked_for():
    assert "wnli" not in [task.name for task in chosen_tasks("glue", [])]
    assert [task.name for task in chosen_tasks("glue", ["wnli", "rte"])] == ["wnli", "rte"]


def test_quotes_bom_crlf_and_missing_last_newline_are_read_as_they_are(tmp_path):
    text = 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\t" He said\tso "\r\n0\t9\t10\t"a\tb\x85c\u2028d'
    path = write(tmp_path, b"\xef\xbb\xbf" + text.encode())
    split, skipped = read_tsv(TASKS["mrpc"], path, 0)
    assert split.first == ['" He said', '"a']
    assert split.second == ['so "', "b\x85c\u2028d"]
    assert split.labels.tolist() == [1, 0]
    assert skipped == 0


def test_cola_has_no_header_and_named_labels_become_indices(tmp_path):
    cola, _ = read_tsv(TASKS["cola"], write(tmp_path, "gj04\t1\t\tFirst line.\ngj04\t0\t*\tSecond line."), 0)
    assert (cola.first, cola.second, cola.labels.tolist()) == (["First line.", "Second line."], None, [1, 0])
    header = "index\tsentence1\tsentence2\tlabel\n"
    rte, _ = read_tsv(TASKS["rte"], write(tmp_path, header + "0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n"), 0)
    assert rte.labels.tolist() == [1, 0]
    assert rte.labels.dtype == np.int64


def test_mnli_reads_the_gold_label_of_both_dev_files(tmp_path):
    train = "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    dev = "index\tgenre\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
    write(tmp_path, train + "0\tfiction\ta\tb\tneutral\tneutral\n", "MNLI/train.tsv")
    write(tmp_path, dev + "0\tfiction\tc\td\tneutral\tentailment\tcontradiction\n", "MNLI/dev_matched.tsv")
    write(tmp_path, dev + "0\tletters\te\tf\tneutral\tneutral\tentailment\n", "MNLI/dev_mismatched.tsv")
    data = load_local(TASKS["mnli"], tmp_path)
    assert data.train.labels.tolist() == [1]
    assert {name: split.labels.tolist() for name, split in data.dev.items()} == {"matched": [2], "mismatched": [0]}


@pytest.mark.parametrize(
    ("task", "content", "words"),
    [
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\n", ["line 3", "3 columns", "4 are"]),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tc\tentailment\n", ["line 2", "5 columns"]),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", ["line 2", "'maybe'"]),
        ("rte", "index\tsentence1\tlabel\n0\ta\tentailment\n", ["'sentence2'"]),
        ("rte", "", ["sentence1"]),
        ("rte", "index\tsentence1\tsentence2\tlabel\n", ["no examples"]),
        ("sst2", "sentence\tlabel\nfine\t2\n", ["line 2", "'2'"]),
        ("cola", "gj04\t-1\t\tA line.\n", ["line 1", "'-1'"]),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", ["line 2", "'5.1'"]),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", ["line 2", "'nan'"]),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tvery\n", ["line 2", "'very'"]),
        ("sst2", b"sentence\tlabel\n\xff\xfe\t1\n", ["not UTF-8", "byte 15"]),
    ],
)
def test_bad_files_are_named_with_line_and_content(tmp_path, task, content, words):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_tsv(TASKS[task], path, 0)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="RTE is missing"):
        load_local(TASKS["rte"], tmp_path)
    (tmp_path / "RTE").mkdir()
    with pytest.raises(UserError, match=r"RTE/train.tsv is missing"):
        load_local(TASKS["rte"], tmp_path)


def test_partial_training_file_marks_the_data(tmp_path):
    row = "index\tquestion\tsentence\tlabel\n0\tq\ts\tentailment\n"
    write(tmp_path, row, "QNLI/train.partial.tsv")
    write(tmp_path, row, "QNLI/dev.tsv")
    assert load_local(TASKS["qnli"], tmp_path).partial == "train.partial.tsv"
    write(tmp_path, row, "QNLI/train.tsv")
    assert load_local(TASKS["qnli"], tmp_path).partial == ""


def test_known_broken_rows_of_qqp_are_skipped_and_counted_up_to_the_limit(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    good = "0\t1\t2\ta\tb\t1\n"
    split, skipped = read_tsv(TASKS["qqp"], write(tmp_path, header + good + "1\t2\tc\n" + good), 1)
    assert (len(split), skipped) == (2, 1)
    with pytest.raises(UserError, match="line 4"):
        read_tsv(TASKS["qqp"], write(tmp_path, header + good + "1\t2\tc\n" + "2\td\n"), 1)


def test_fingerprint_follows_texts_and_labels_and_limit_is_marked():
    def data(text="b", label=1):
        split = Split(["a", text], None, np.asarray([0, label]))
        return TaskData(TASKS["sst2"], split, {"dev": split})

    assert data().fingerprint() == data().fingerprint()
    assert len({data().fingerprint(), data(text="c").fingerprint(), data(label=0).fingerprint()}) == 3
    assert limited(data(), None).partial == ""
    short = limited(data(), 1)
    assert (len(short.train), len(short.dev["dev"]), short.partial) == (1, 2, "first 1 of 2 examples")
    assert (
        limited(replace(data(), partial="train.partial.tsv"), 1).partial == "train.partial.tsv, first 1 of 2 examples"
    )


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"source": "web"}, "glue.source"),
        ({"source": "local"}, "glue.dir"),
        ({"tasks": ["rte"]}, "glue.tasks"),
        ({"source": "hub", "tasks": ["word_order"]}, "glue.tasks"),
        ({"seeds": []}, "glue.seeds"),
        ({"seeds": [1, 1]}, "glue.seeds"),
        ({"epochs": 0}, "glue.epochs"),
        ({"lr": 0.0}, "glue.lr"),
        ({"lr": float("nan")}, "glue.lr"),
        ({"warmup": "none"}, "glue.warmup"),
        ({"warmup_fraction": 1.5}, "glue.warmup_fraction"),
        ({"dropout": 1.0}, "glue.dropout"),
        ({"precision": "int8"}, "glue.precision"),
        ({"max_length": 4}, "glue.max_length"),
    ],
)
def test_wrong_configuration_names_its_key(values, key):
    with pytest.raises(UserError, match=key):
        GlueConfig(**values)


def test_defaults_are_the_papers_recipe():
    config = GlueConfig(source="hub")
    assert (config.batch, config.lr, config.beta1, config.beta2, config.eps) == (16, 4e-5, 0.9, 0.98, 1e-6)
    assert (config.weight_decay, config.warmup_fraction, config.max_length, config.dropout) == (0.0, 0.1, 128, 0.1)
    assert (len(config.seeds), config.warmup, config.epochs) == (5, "per_task", None)


INFINITE = [("lr", float("inf")), ("eps", float("inf")), ("weight_decay", float("nan")), ("dropout", float("nan"))]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *INFINITE,
        ("beta1", float("nan")),
        ("beta2", float("inf")),
        ("warmup_fraction", float("nan")),
        ("weight_decay", float("inf")),
        ("seeds", [-1]),
        ("seeds", [2**32]),
        ("mini_seed", -1),
        ("mini_seed", 2**70),
        ("limit_train", 0),
    ],
)
def test_numbers_that_no_training_can_use_name_their_key(key, value):
    with pytest.raises(UserError, match=rf"glue\.{key} is "):
        GlueConfig(**{key: value})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"sentence\tlabel\nfine\t1\nbad \xe9\t0\n", ["line 3", "not UTF-8", "byte 26"]),
        (b"sentence\tlabel\nfine\t1\n\0\0\0\0\n", ["line 3", "zero byte"]),
        (b"sentence\tlabel\nfine\t" + b"9" * 5000 + b"\n", ["line 2", "label"]),
        (b"sentence\tlabel\rfine\t1\r" * 900, ["no column 'label'"]),
        ("sentence\tlabel\n".encode("utf-16"), ["line 1", "not UTF-8"]),
        (b"sentence\tlabel\nfine\t1\n\tfine\t1\n", ["line 3", "3 columns"]),
    ],
)
def test_a_damaged_file_is_named_by_its_line_in_few_words(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_tsv(TASKS["sst2"], path, 0)
    assert all(word in str(caught.value) for word in [str(path), *words])
    assert len(str(caught.value)) < len(str(path)) + 400


def test_a_hub_row_without_a_text_is_named():
    rows = {"sentence": ["fine", None], "label": [1, 0]}

    class Table(dict):
        column_names = ("sentence", "label")

    with pytest.raises(UserError, match=r"\(sst2\), row 1: sentence is None"):
        hub_split(TASKS["sst2"], Table(rows))
