import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import SUBCOMMANDS, main

LOAD = ["load", "--rate", "1"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["load"], "--rate"),
        (["load", "--rate", "0"], "--rate"),
        (["load", "--rate", "nan"], "--rate"),
        (["load", "--rate", "fast"], "--rate"),
        ([*LOAD, "--duration", "-1"], "--duration"),
        ([*LOAD, "--duration", "1e-9"], "--duration"),
        ([*LOAD, "--requests", "0"], "--requests"),
        ([*LOAD, "--requests", "1.5"], "--requests"),
        ([*LOAD, "--arrivals", "often"], "--arrivals"),
        ([*LOAD, "--api", "rest"], "--api"),
        ([*LOAD, "--api", "segments"], "--model"),
        ([*LOAD, "--api", "segments", "--model", "m"], "--voice"),
        ([*LOAD, "--api", "segments", "--model", "m", "--voice", "v", "--format", "wav"], "--format"),
        ([*LOAD, "--format", "ogg"], "--format"),
        ([*LOAD, "--decode"], "--decode"),
        ([*LOAD, "--stream-format", "sse"], "--stream-format"),
        ([*LOAD, "--url", "localhost:8080"], "--url"),
        ([*LOAD, "--mix", "standard", "--characters", "9"], "--characters"),
        ([*LOAD, "--texts", "nowhere.txt"], "--texts"),
        ([*LOAD, "--trace-in", "nowhere.jsonl"], "--rate"),
        (["load", "--trace-in", "nowhere.jsonl"], "--trace-in"),
        ([*LOAD, "--json", "nowhere/a.json"], "--json"),
        ([*LOAD, "--plot", "nowhere/a.png"], "--plot"),
        ([*LOAD, "--plot", "a.txt"], "--plot"),
        ([*LOAD, "--trace-out", "nowhere/a"], "--trace-out"),
        ([*LOAD, "--watch-pid", "99999999"], "--watch-pid"),
        ([*LOAD, "--watch-pid", "x"], "--watch-pid"),
        ([*LOAD, "--calibrate", "3", "--alone-per-character", "0.1"], "--calibrate"),
        ([*LOAD, "--alone-per-request", "3"], "--alone-per-character"),
        ([*LOAD, "--longest", "3"], "--longest"),
        (["compare", "one.json"], "FILE.json"),
        (["compare", "one.json", "two.json"], "one.json"),
        (["compare", "one.json", "two.json", "--plot", "nowhere/a.png"], "--plot"),
        (["lode"], "SUBCOMMAND"),
        ([], "SUBCOMMAND"),
    ],
)
def test_a_bad_option_is_named_and_exits_with_2(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code  # type: ignore[assignment]
    assert code == 2
    told = capsys.readouterr()
    assert named in told.err.splitlines()[-1]
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_replayed_names_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    assert main(["load", "--trace-in", str(bad)]) == 2
    assert f"--trace-in: {bad}: line 1" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert main(["load", "--trace-in", str(empty)]) == 2
    assert main(["load", "--rate", "1", "--texts", str(empty)]) == 2


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    # A fresh interpreter in which the import fails as it does where the extra is not installed.
    program = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['psutil'] = None\n"
        "from bench.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for option in (["--plot", str(tmp_path / "a.png")], ["--watch-pid", "1"]):
        done = subprocess.run([sys.executable, "-c", program, *LOAD, *option], capture_output=True, text=True)
        assert done.returncode == 2
        assert option[0] in done.stderr
        assert "chatterbox-gateway[bench]" in done.stderr
