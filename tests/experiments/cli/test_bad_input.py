"""Bad and unusual command lines: the documented exit code, one sentence, and as JSON the same."""

import json
import shlex
from pathlib import Path

import pytest

from experiments.cli import run_command

CHECK = "check gemv_naive m=1 n=8 k=8"
DECODE = "check attention_split_kv q_heads=8 head_dim=128 q_len=1 kv_len=128"

FILES = {
    "words.jsonl": b"not a record",
    "bits.jsonl": b"\x00\x01\xff\xfe",
    "list.jsonl": b"[]\n",
    "empty.jsonl": b"",
    "half.jsonl": b'{"schema": 1}\n',
    "newer.jsonl": b'{"schema": 99}\n',
    "no.json": b"[1",
    "list.json": b"[1, 2]",
    "bits.json": b"\xff\xfe",
    "partly.json": b'{"name": "mine"}',
    "named.json": b'{"name": "h100", "sms": -1}',
    "text.gguf": b"not a model",
    "empty.gguf": b"",
    "short.gguf": b"GGUF\x03\x00\x00\x00",
    "huge.gguf": b"GGUF\x03\x00\x00\x00" + b"\xff" * 15 + b"\x7f",
}

# (command line, exit code, what the one sentence says)
CASES = [
    ("explian linear", 2, "unknown verb 'explian'; verbs: list, explain"),
    ("'' m=1", 2, "unknown verb ''"),
    ("check '' m=1", 2, "unknown kernel ''"),
    ("check gemv_naive m", 2, "'m' is not a name=value word"),
    ("check gemv_naive m= n=8 k=8", 2, "m takes an integer; got ''"),
    ("check gemv_naive m=1 m=2 n=8 k=8", 2, "m is given twice"),
    ("check gemv_naive m=1e3 n=8 k=8", 2, "m takes an integer; got '1e3'"),
    ("check gemv_naive m=0x10 n=8 k=8", 2, "m takes an integer"),
    ("check gemv_naive m=true n=8 k=8", 2, "m takes an integer"),
    ("check gemv_naive m=nan n=8 k=8", 2, "m takes an integer"),
    ("check gemv_naive m=99999999999999999999999 n=8 k=8", 2, "m must be from 1 to 2,147,483,647"),
    (f"check gemv_naive m={'9' * 5000} n=8 k=8", 2, "m takes an integer"),
    ("check gemv_naive m=\udcff n=8 k=8", 2, "m takes an integer"),
    ("check gemv_naive 'm=1\nn=8' n=8 k=8", 2, "m takes an integer"),
    (f"{CHECK} weights=", 2, "unknown format ''"),
    (f"{CHECK} weights=BF16", 2, "unknown format 'BF16'"),
    (f"{CHECK} epilogue=gelu", 2, "gelu"),
    (f"{CHECK} output=fp5", 2, "unknown format 'fp5'"),
    (f"{CHECK} kind=attention", 2, "unknown name 'kind'"),
    (f"{CHECK} --schedule", 2, "--schedule"),
    (f"{CHECK} --schedule rows", 2, "'rows'"),
    (f"{CHECK} --schedule block_m=", 2, "block_m"),
    (f"{CHECK} --schedule block_m=-2", 2, "block_m"),
    (f"{CHECK} --schedule block_m=2.0", 2, "block_m"),
    (f"{CHECK} --schedule block_m=99999999999999999999", 2, "block_m"),
    (f"{CHECK} --machine ''", 2, "unknown machine ''"),
    (f"{CHECK} --machine nowhere.json", 2, "nowhere.json cannot be read: No such file"),
    (f"{CHECK} --machine no.json", 2, "no.json is no JSON"),
    (f"{CHECK} --machine list.json", 2, "it is no JSON object of a machine's fields"),
    (f"{CHECK} --machine bits.json", 2, "bits.json is no JSON"),
    (f"{CHECK} --machine partly.json", 2, "must be given"),
    (f"{CHECK} --seeds 0", 2, "--seeds"),
    (f"{CHECK} --seeds x", 2, "--seeds"),
    (f"{CHECK} --deadline 0", 2, "--deadline"),
    (f"{CHECK} --on", 2, "--on"),
    (f"{DECODE} batch=0 kv_heads=8", 2, "batch"),
    (f"{DECODE} batch=1 kv_heads=3", 2, "kv_heads"),
    (f"{DECODE} batch=2 kv_heads=8 kv_lens=1,2,3", 2, "kv_lens"),
    (f"{DECODE} batch=2 kv_heads=8 kv_lens=a", 2, "kv_lens takes an integer; got 'a'"),
    (f"{DECODE} batch=2 kv_heads=8 kv_lens=128,129", 2, "kv_len"),
    (f"{DECODE} batch=2 kv_heads=8 page=-1", 2, "page"),
    ("list --solves conv", 2, "unknown kind 'conv'; kinds: model, "),
    ("list --format fp5", 2, "unknown format 'fp5'"),
    ("list --machine h1000", 2, "unknown machine 'h1000'"),
    ("list --sort size", 2, "--sort"),
    ("list kernles", 2, "'kernles' is not one of"),
    ("list experiments --solves linear", 2, "are of kernels"),
    ("list --json=3", 2, "does not take a value"),
    ("run kv_cache layers", 2, "'layers' is not a name=value word"),
    ("run kv_cache layers=99999999999999999999", 2, "layers at most 100,000"),
    ("run kv_cache batch=-5", 2, "batch"),
    ("run gemm_ladder raster=gemm_v7", 2, "unknown kernel 'gemm_v7'"),
    ("run gemm_ladder rounds=0", 2, "rounds and seconds are at least 1"),
    ("run gemm_ladder counters=maybe", 2, "counters takes true or false"),
    ("run gemv_ladder only=1x1", 2, "only is all, 1024x1024"),
    ("run decode_bars shape=99", 2, "shape is -1 to"),
    ("run batching formats=bf16+fp5", 2, "fp5"),
    ("run machines extra", 2, "'extra' is not a name=value word"),
    ("bench linear m=1 n=8 k=8 --clocks warm", 2, "unknown clock 'warm'; clocks: cold, graph"),
    ("bench linear m=1 n=8 k=8 --rounds 0", 2, "--rounds"),
    ("calibrate --from-records h1000", 2, "unknown machine 'h1000'"),
    ("compare words.jsonl words.jsonl", 2, "hold no timed kernel"),
    ("compare bits.jsonl bits.jsonl", 2, "hold no timed kernel"),
    ("compare list.jsonl list.jsonl", 2, "list.jsonl line 1 is not a record"),
    ("compare empty.jsonl empty.jsonl", 2, "hold no timed kernel"),
    ("compare half.jsonl half.jsonl", 2, "half.jsonl line 1 is not a record"),
    ("compare newer.jsonl newer.jsonl", 2, "has schema 99; this version of the lab reads 1"),
    ("compare . .", 2, ". cannot be read: Is a directory"),
    ("compare /dev/zero /dev/zero", 2, "a records file has at most"),
    ("compare '' ''", 2, "'' is neither a records file nor the id or commit of a kept run; the newest runs:"),
    ("compare empty.jsonl", 2, "two sets of records are compared"),
    ("compare empty.jsonl empty.jsonl --threshold -1", 2, "--threshold"),
    ("generate hi --model nowhere.gguf", 2, "nowhere.gguf cannot be read"),
    ("generate hi --model text.gguf", 2, "text.gguf is not a usable GGUF model"),
    ("generate hi --model empty.gguf", 2, "empty.gguf cannot be read"),
    ("generate hi --model short.gguf", 2, "short.gguf is not a usable GGUF model"),
    ("generate hi --model huge.gguf", 2, "huge.gguf is not a usable GGUF model"),
    ("generate hi --model .", 2, ". is not a usable model folder"),
    ("generate hi --max-tokens 0", 2, "--max-tokens"),
    ("generate hi --temperature nan", 2, "temperature must be from 0 to 100"),
    ("generate hi --seed -1", 2, "seed"),
    ("report extra", 2, "unexpected extra argument"),
    ("--nonsense", 2, "No such option"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are not what they are called."""
    place = tmp_path_factory.mktemp("bad")
    for name, text in FILES.items():
        (place / name).write_bytes(text)
    return place


@pytest.mark.parametrize(("line", "code", "says"), CASES, ids=lambda value: str(value)[:50] if value else "")
def test_bad_input(
    line: str, code: int, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    arguments = shlex.split(line)
    assert run_command(arguments) == code
    out, err = capsys.readouterr()
    lines = [one for one in err.splitlines() if not one.endswith(" ...")]
    assert out == ""
    assert 1 <= len(lines) <= 2
    assert says in lines[-1]
    assert "bug" not in err
    assert run_command([arguments[0], "--json", *arguments[1:]]) == code
    out, _ = capsys.readouterr()
    failure = json.loads(out)["error"]
    assert (failure["exit_code"], out.count("\n"), says in failure["message"]) == (code, 1, True)
