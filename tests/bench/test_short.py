"""bench.short: int8 beside bfloat16 for short calls."""

import pytest

from bench import short
from bench.short import HEADER, Plan, main, rows
from fff.kernels.int8_linear import unusable

if reason := unusable():
    pytest.skip(reason, allow_module_level=True)


def test_each_call_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(short.ENCODERS, "tiny", (1, 192, "dense 128"))
    found = rows("tiny", Plan(calls=((1, 3), (2, 5)), seconds=0, vocab_size=64, least=2))
    assert [row[:2] for row in found] == [["tiny", "1 x 3"], ["tiny", "2 x 5"]]
    for row in found:
        assert len(row) == len(HEADER)
        assert all(float(each) > 0 for each in row[2:5])
        assert row[-1] == "2"
    with pytest.raises(SystemExit):
        main(["--threads", "0"])
    assert "--threads" in capsys.readouterr().err
