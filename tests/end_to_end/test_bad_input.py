"""Bad input to every command: status 2, one line that names the key or file, and nothing written before it."""

import re
from pathlib import Path

import pytest

from tests.helpers.commands import inline
from tests.helpers.data import make_documents, write_txt
from tests.helpers.glue import tiny_run, write_sst2

NO_TREE = "ffn.trees=null ffn.depth=null"
# What a case changes: a run of seconds, so that what is wrongly accepted shows as such.
TINY = (
    "data=text data.files=[{tmp}/text.txt] data.vocab_size=200 data.seq_len=16 data.valid_share=0.2 data.workers=1 "
    "model.hidden_size=16 model.layers=1 model.heads=2 train.budget_tokens=4000 train.batch=8 train.microbatch=8 "
    "ffn.trees=1 ffn.depth=2 wandb=off"
)
# Overrides of `make pretrain` -> what the line must name. {tmp} is a folder with text.txt and other small files.
PRETRAIN = {
    # data
    "data.source=tape": "data.source",
    "data.order=alphabet": "data.order",
    "data.name=..": "data.name",
    "data.name=a/b": "data.name",
    "data.name=": "data.name",
    f"data.name={'x' * 256}": "data.name",
    "data.seq_len=0": "data.seq_len",
    "data.seq_len=-128": "data.seq_len",
    "data.seq_len=1.5": "data.seq_len",
    "data.vocab_size=10": "data.vocab_size",
    "data.vocab_size=99999999999": "data.vocab_size",
    "data.valid_share=1": "data.valid_share",
    "data.valid_share=-0.1": "data.valid_share",
    "data.valid_share=nan": "data.valid_share",
    "data.valid_share=0": "data.valid_share",
    "data.max_megabytes=0": "data.max_megabytes",
    "data.max_megabytes=inf": "data.max_megabytes",
    "data.max_megabytes=nan": "data.max_megabytes",
    "data.tokenizer_megabytes=-1": "data.tokenizer_megabytes",
    "data.tokenizer_megabytes=inf": "data.tokenizer_megabytes",
    "data.valid_max_megabytes=nan": "data.valid_max_megabytes",
    "data.max_tokens_per_char=-1": "data.max_tokens_per_char",
    "data.workers=-1": "data.workers",
    "data.files=[a.txt]": "a.txt",
    "data.files=[]": "data.files",
    "data=docs data.files=[{tmp}/text.txt]": "data.files",
    "data.files=[{tmp}/missing.txt]": "missing.txt",
    "data.files=[{tmp}/text.doc]": "text.doc",
    "data.files=[{tmp}/empty.txt]": "data",
    "data.files=[{tmp}/cut.txt.gz]": "cut.txt.gz",
    "data.files=[{tmp}/bad.jsonl]": "bad.jsonl",
    "data.files=[{tmp}/bad.parquet]": "bad.parquet",
    "data.files=[{tmp}/binary.txt]": "binary.txt",
    "data.files=[{tmp}/text.txt] data.valid_files=[{tmp}/missing.txt]": "missing.txt",
    "data.files=[{tmp}/text.txt] data.tokenizer={tmp}/missing": "data.tokenizer",
    "data.files=[{tmp}/text.txt] data.tokenizer={tmp}/text.txt": "data.tokenizer",
    "data.source=hub data.files=[]": "data.hub",
    "data.source=readymade data.files=[]": "data.hub",
    "data.colour=red": "data.colour",
    "data=": "data",
    # model
    "model.hidden_size=0": "model.hidden_size",
    "model.hidden_size=-8": "model.hidden_size",
    "model.hidden_size=33": "model.",
    "model.layers=0": "model.layers",
    "model.heads=0": "model.heads",
    "model.heads=5": "model.heads",
    "model.positions=none": "model.positions",
    "model.positions=rotary model.hidden_size=12 model.heads=4": "model.",
    "model.rotary_base=0": "model.rotary_base",
    "model.rotary_base=inf": "model.rotary_base",
    "model.norm_eps=nan": "model.norm_eps",
    "model.norm_eps=-1": "model.norm_eps",
    "model.init_std=0": "model.init_std",
    "model.init_std=inf": "model.init_std",
    "model=huge": "model/huge",
    # ffn
    "ffn.kind=tree": "ffn.kind",
    "ffn=mlp": "ffn/mlp",
    "ffn.depth=-1": "ffn.depth",
    "ffn.depth=21": "ffn.depth",
    "ffn.depth=null": "ffn.depth",
    "ffn.depth=2.5": "ffn.depth",
    "ffn.trees=0": "ffn.trees",
    "ffn.trees=null": "ffn.",
    "ffn.neurons=100": "ffn.",
    "ffn.trees=null ffn.neurons=1": "ffn.neurons",
    "ffn.width=64": "ffn.width",
    "ffn.activation=step": "ffn.activation",
    "ffn.execution=quantum": "execution",
    "ffn.provider=gpu": "provider",
    "ffn.execution=masked ffn.provider=gather": "provider",
    "ffn.leaf_width=4": "leaf_width",
    "ffn.master_width=4": "master_width",
    f"ffn=dense {NO_TREE} ffn.width=0": "ffn.width",
    f"ffn=dense {NO_TREE} ffn.width=null": "ffn.width",
    f"ffn=dense {NO_TREE} ffn.width=8 ffn.activation=relu": "ffn.activation",
    f"ffn=dense {NO_TREE} ffn.width=7 ffn.activation=gated_gelu": "ffn.width",
    "ffn=dense ffn.width=8": "ffn.",
    "ffn=leaf ffn.trees=null ffn.leaf_width=0": "ffn.leaf_width",
    "ffn=leaf ffn.trees=null ffn.leaf_width=null": "ffn.leaf_width",
    "ffn=leaf ffn.trees=null ffn.leaf_width=2 ffn.depth=30": "ffn.depth",
    "ffn=leaf ffn.trees=null ffn.leaf_width=2 ffn.master_width=-1": "ffn.master_width",
    "ffn=leaf ffn.trees=null ffn.leaf_width=2 ffn.bias=false": "ffn.bias",
    # train
    "train.budget_steps=10": "train",
    "train.budget_tokens=null": "train",
    "train.budget_tokens=0": "train.budget_tokens",
    "train.budget_tokens=null train.budget_steps=-1": "train.budget_steps",
    "train.budget_tokens=null train.budget_hours=nan": "train.budget_hours",
    "train.budget_tokens=null train.budget_hours=inf": "train.budget_hours",
    "train.microbatch=0": "train.microbatch",
    "train.batch=0": "train.batch",
    "train.batch=33 train.microbatch=32": "train.batch",
    "train.batch_ramp=2": "train.batch_ramp",
    "train.batch_ramp=nan": "train.batch_ramp",
    "train.lr=0": "train.lr",
    "train.lr=-1": "train.lr",
    "train.lr=nan": "train.lr",
    "train.lr=inf": "train.lr",
    "train.lr=fast": "train.lr",
    "train.schedule=zigzag": "train.schedule",
    "train.beta1=1": "train.beta1",
    "train.beta2=nan": "train.beta2",
    "train.eps=0": "train.eps",
    "train.eps=inf": "train.eps",
    "train.weight_decay=-1": "train.weight_decay",
    "train.weight_decay=inf": "train.weight_decay",
    "train.clip=0": "train.clip",
    "train.clip=nan": "train.clip",
    "train.mask_rate=0": "train.mask_rate",
    "train.mask_rate=1": "train.mask_rate",
    "train.mask_rate=nan": "train.mask_rate",
    "train.precision=fp8": "train.precision",
    "train.precision=fp16": "train.precision",
    "train.compile_mode=max": "train.compile_mode",
    "train.validations=0": "train.validations",
    "train.valid_sequences=0": "train.valid_sequences",
    "train.usage_sequences=0": "train.usage_sequences",
    "train.usage_steps=0": "train.usage_steps",
    "train.checkpoints=0": "train.checkpoints",
    "train.keep_checkpoints=0": "train.keep_checkpoints",
    "train.log_steps=0": "train.log_steps",
    "train.profile_steps=50": "train.profile_steps",
    "train.lrr=1": "train.lrr",
    # hardening
    "hardening=gentle": "hardening/gentle",
    "hardening.form=gentle": "hardening.form",
    "hardening.region_leak=0.6": "hardening.region_leak",
    "hardening.region_leak=nan": "hardening.region_leak",
    "hardening.harden_at=2": "hardening.harden_at",
    "hardening.harden_at=nan": "hardening.harden_at",
    "hardening.temperature.start=0": "hardening.temperature.start",
    "hardening.temperature.start=inf": "hardening.temperature.start",
    "hardening.temperature.schedule=random": "hardening.temperature.schedule",
    "hardening.entropy_weight.start=-1": "hardening.entropy_weight.start",
    "hardening.entropy_weight.start=nan": "hardening.entropy_weight.start",
    "hardening.balance_weight.end=inf": "hardening.balance_weight.end",
    "hardening.balance_weight.schedule=exponential hardening.balance_weight.end=1": "hardening.balance_weight",
    "hardening=anneal ffn.provider=gather": "hardening",
    # the rest
    "seed=-1": "seed",
    "seed=4294967296": "seed",
    "seed=one": "seed",
    "wandb.mode=loud": "wandb.mode",
    "experiment=nope": "experiment/nope",
    "experiment.name=x": "experiment",
    "+foo=1": "foo",
    "train.lr=[": "train.lr=[",
    "output_dir={tmp}/text.txt": "text.txt",
    "output_dir=/proc/nowhere": "/proc/nowhere",
    "results_dir={tmp}/text.txt": "text.txt",
}
GLUE = {
    "glue.source=web": "glue.source",
    "glue=local": "glue.dir",
    "glue=local glue.dir={tmp}/missing": "missing",
    "glue.tasks=[sst2]": "glue.tasks",
    "glue=local glue.dir={tmp} glue.tasks=[sst3]": "glue.tasks",
    "glue=local glue.dir={tmp} glue.tasks=[cola]": "CoLA",
    "glue.seeds=[]": "glue.seeds",
    "glue.seeds=[-1]": "glue.seeds",
    "glue.seeds=[0,0]": "glue.seeds",
    "glue.epochs=0": "glue.epochs",
    "glue.batch=0": "glue.batch",
    "glue.eval_batch=0": "glue.eval_batch",
    "glue.lr=nan": "glue.lr",
    "glue.lr=inf": "glue.lr",
    "glue.lr=0": "glue.lr",
    "glue.eps=inf": "glue.eps",
    "glue.beta1=1": "glue.beta1",
    "glue.dropout=1": "glue.dropout",
    "glue.dropout=nan": "glue.dropout",
    "glue.weight_decay=-1": "glue.weight_decay",
    "glue.weight_decay=inf": "glue.weight_decay",
    "glue.warmup=often": "glue.warmup",
    "glue.warmup_fraction=nan": "glue.warmup_fraction",
    "glue.max_length=4": "glue.max_length",
    "glue.max_length=64 glue=local glue.dir={tmp} glue.tasks=[sst2]": "glue.max_length",
    "glue.precision=fp16": "glue.precision",
    "glue.limit_train=0": "glue.limit_train",
    "glue.mini_train=0": "glue.mini_train",
    "checkpoint={tmp}/missing": "missing",
    "checkpoint={tmp}/text.txt": "text.txt",
}
IMAGES = {
    "images=letters": "images/letters",
    "images.source=web": "images.source",
    "images.source=hub": "images.id",
    "images.name=../x": "images.name",
    "images.widths=[3]": "images",
    "images.leaf_widths=[0]": "images.leaf_widths",
    "images.seeds=[-1]": "images.seeds",
    "images.epochs=0": "images.epochs",
    "images.batch=0": "images.batch",
    "images.lr=nan": "images.lr",
    "images.lr=inf": "images.lr",
    "images.test_share=1": "images.test_share",
    "images.valid_share=nan": "images.valid_share",
    "images.entropy_weight=-1": "images.entropy_weight",
    "images.entropy_weight=inf": "images.entropy_weight",
    "images.activation=step": "images.activation",
    "images.variants=[odd]": "images.variants",
}
ANY = "distill.model={tmp}/run/model distill.text=[{tmp}/text.txt]"
DISTILL = {
    "distill.text=[{tmp}/text.txt]": "distill.model",
    "distill.model={tmp}/run/model": "distill.text",
    f"{ANY} distill=slow": "distill/slow",
    f"{ANY} distill.to=tree": "distill.to",
    f"{ANY} distill.to=leaf:5": "leaf:DxW",
    f"{ANY} distill.controls=[narrow:0]": "distill.controls",
    f"{ANY} distill.rest=int4": "distill.rest",
    f"{ANY} distill.start=middle": "distill.start",
    f"{ANY} distill.compute=fp8": "distill.compute",
    f"{ANY} distill.tokens=0": "distill.tokens",
    f"{ANY} distill.ridge=0": "distill.ridge",
    f"{ANY} distill.whole_lr=nan": "distill.whole_lr",
    f"{ANY} distill.block_lr=inf": "distill.block_lr",
    f"{ANY} distill.neighbours=3": "distill.neighbours",
    f"{ANY} distill.record_gb=-1": "distill.record_gb",
    f"{ANY} distill.seed=-1": "distill.seed",
    f"{ANY} distill.out={{tmp}}/run": "run",
    f"{ANY} distill.tokens=99999999 distill.seq_len=16": "distill.tokens",
    f"{ANY} distill.held_out=[{{tmp}}/text.txt] distill.tokens=100 distill.neighbours=12 distill.seq_len=16": (
        "no feedforward block"
    ),
    "distill.model={tmp} distill.text=[{tmp}/text.txt]": "config.json",
    "distill.model={tmp}/missing distill.text=[{tmp}/text.txt]": "missing",
    "distill.model={tmp}/text.txt distill.text=[{tmp}/text.txt]": "text.txt",
    "distill.model={tmp}/run/model distill.text=[{tmp}/missing.txt]": "missing.txt",
    "distill.model={tmp}/run/model distill.text=[{tmp}/text.txt] distill.tokenizer={tmp}": "distill.tokenizer",
}
OTHERS = [
    ("tables", "results_dir={tmp}/missing", "paper.yaml"),
    ("tables", "results_dir={tmp}/results", "broken.json"),
    ("convert", "{tmp}/missing {tmp}/out", "missing"),
    ("convert", "{tmp} {tmp}/out", "model.safetensors"),
    ("convert", "{tmp}/run/model {tmp}/out", "run/model"),
    ("convert", "{tmp}/run/model {tmp}/run/model", "run/model"),
    ("regions", "{tmp}/missing {tmp}/text.txt --out {tmp}/page.html", "missing"),
    ("regions", "{tmp}/run {tmp}/missing.txt --out {tmp}/page.html", "missing.txt"),
    ("regions", "{tmp}/run {tmp}/binary.txt --out {tmp}/page.html", "binary.txt"),
    ("regions", "{tmp}/run {tmp}/empty.txt --out {tmp}/page.html", "empty.txt"),
    ("regions", "{tmp}/run {tmp}/text.txt --out {tmp}", "--out"),
    ("regions", "{tmp}/run {tmp}/text.txt --out {tmp}/page.html --tokens 0", "--tokens"),
    ("pretrain_plain", "{tmp}/missing.json", "missing.json"),
    ("pretrain_plain", "{tmp}/text.txt", "text.txt"),
    ("pretrain_plain", "{tmp}/order.json", "order.json"),
    ("prepare", "data.source=tape", "data.source"),
    ("prepare", "output_dir={tmp}/text.txt", "text.txt"),
]
CASES = [
    *(("pretrain", line, words) for line, words in PRETRAIN.items()),
    *(("glue", line, words) for line, words in GLUE.items()),
    *(("images", line, words) for line, words in IMAGES.items()),
    *(("distill", line, words) for line, words in DISTILL.items()),
    *OTHERS,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files."""
    folder = tmp_path_factory.mktemp("place")
    write_txt(folder / "text.txt", make_documents(40))
    (folder / "text.doc").write_text("text")
    (folder / "empty.txt").write_text("")
    (folder / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    (folder / "bad.parquet").write_bytes(b"PAR1 no parquet PAR1")
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)) * 40)
    (folder / "order.json").write_text('{"config": {"seed": 0, "colour": "red"}, "data": "x"}')
    (folder / "results" / "runs").mkdir(parents=True)
    (folder / "results" / "runs" / "broken.json").write_text('{"schema_version": 1,')
    write_sst2(folder)
    tiny_run(folder / "run")
    return folder


def files_below(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder with its content; a lock, which holds nothing, is none."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in files if path.name != ".lock"}


def arguments_of(script: str, line: str, place: Path) -> list[str]:
    """The command line of a case; Hydra's commands write below the folder `place` alone."""
    given = line.format(tmp=place).split(" ")
    if script in ("convert", "regions", "pretrain_plain"):
        return given
    if script == "glue" and "checkpoint" not in line:
        given = [f"checkpoint={place}/run", "glue.max_length=16", *given]
    homes = {"output_dir": f"{place}/outputs", "results_dir": f"{place}/records"}
    if script in ("images", "tables"):
        homes.pop("output_dir")
    named = {item.split("=")[0] for item in given}
    tiny = TINY.format(tmp=place).split(" ") if script in ("pretrain", "glue", "prepare") else []
    return [*tiny, *(f"{key}={value}" for key, value in homes.items() if key not in named), *given]


@pytest.mark.parametrize(("script", "line", "words"), CASES, ids=[f"{script} {line}"[:90] for script, line, _ in CASES])
def test_bad_input_is_one_line_before_anything_is_written(script: str, line: str, words: str, place: Path) -> None:
    before = files_below(place)
    done = inline(script, *arguments_of(script, line, place))
    errors = [text for text in re.split(r"[\r\n]", done.stderr) if text.startswith("error: ")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(errors) == 1, done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert files_below(place) == before
