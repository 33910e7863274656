"""The peers' runner: the protocol with a worker that only pretends, who is named when it fails, and the ratios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "peers"))

import run  # noqa: E402

import peers  # noqa: E402
from treadle.bench.points import Limits, Point  # noqa: E402

FAKE = Path(__file__).with_name("fake_worker.py")
PREFILL, DECODE = Point("prefill", 10, 1, 0), Point("decode", 4, 2, 8)


def worker(behaviour):
    return peers.Worker([sys.executable, FAKE, behaviour], Path("some.gguf"), 2, 4, 64)


def test_a_worker_is_told_the_options_by_name():
    options = {"numerics": "bf16", "PRECISION": "a=b"}
    fake = peers.Worker([sys.executable, FAKE, "ok:1"], Path("some.gguf"), 2, 4, 64, options)
    fake.close()
    assert fake.ran == f"some.gguf, 2 threads, {options}"


def system(name, behaviour):
    made = run.System(name, lambda: worker(behaviour))
    made.open()
    return made


@pytest.fixture
def found():
    """Three turns of two systems, and a third that is not to be had."""
    systems = [system("treadle", "ok:0.5"), system("slow", "ok:1.5"), system("none", "no-load")]
    points = [PREFILL, DECODE, run.FIRST_TOKEN]
    try:
        run.take_turns(systems, points, 3, 0.0, lambda text: None)
    finally:
        for each in systems:
            each.close()
    return run.report(systems, points, None)


def test_a_worker_answers_point_by_point_and_chatter_is_kept_apart():
    fake = worker("ok:0.25")
    try:
        assert (fake.version, fake.ran) == ("fake 1", "some.gguf, 2 threads")
        assert fake.measure(PREFILL) == {"seconds": 2.5}
        assert fake.measure(DECODE) == {"seconds": 2.0}
    finally:
        fake.close()


def test_a_worker_that_cannot_load_says_why():
    with pytest.raises(peers.Unavailable, match=r"RuntimeError: cannot read some\.gguf"):
        worker("no-load")


def test_a_point_that_fails_leaves_the_worker_usable():
    fake = worker("no-decode")
    try:
        with pytest.raises(peers.Unavailable, match="ValueError: no decode here"):
            fake.measure(DECODE)
        assert fake.measure(PREFILL) == {"seconds": 10.0}
    finally:
        fake.close()


def test_a_worker_that_dies_is_told_by_its_exit_code():
    fake = worker("dies")
    try:
        with pytest.raises(peers.Unavailable, match="ended with 7"):
            fake.measure(DECODE)
    finally:
        fake.close()


def test_silence_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(peers, "LOAD_SECONDS", 0.3)
    with pytest.raises(peers.Unavailable, match="no answer in 0 s"):
        peers.Worker([sys.executable, "-c", "import time; time.sleep(60)"], Path("m"), 1, 1, 1)


def test_an_install_that_fails_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers, "REQUIREMENTS", tmp_path)
    (tmp_path / "peer-broken.txt").write_text(f"{tmp_path}/no-such-package.tar.gz\n")
    broken = peers.Peer("broken", "worker.py", "broken")
    with pytest.raises(peers.Unavailable, match="cannot be installed"):
        peers.interpreter(broken)
    assert not broken.venv.exists()


def test_every_peer_has_its_worker_and_its_pinned_requirements():
    for peer in peers.PEERS.values():
        assert (peers.HERE / peer.worker).is_file()
        lines = (peers.REQUIREMENTS / f"peer-{peer.requirements}.txt").read_text().splitlines()
        packages = [line for line in lines if line and not line.startswith(("#", "--"))]
        assert packages
        assert all("==" in line for line in packages)


def test_rates_and_ratios_are_those_of_the_seconds(found):
    prefill, decode, first = found["points"]
    assert prefill["tok_s"]["treadle"] == 2.0
    assert prefill["tok_s"]["slow"] == pytest.approx(0.67)
    assert prefill["ratio"] == {"slow": 3.0, "none": None}
    assert decode["seconds"] == {"treadle": 4.0, "slow": 12.0, "none": None}
    assert first["tok_s"]["treadle"] is None
    assert 0 < first["seconds"]["treadle"] < 60
    json.dumps(found)


def test_who_is_missing_is_named_with_the_reason(found):
    assert found["systems"]["none"] == {"unavailable": "RuntimeError: cannot read some.gguf"}
    text = run.table(found)
    assert "none: not measured: RuntimeError: cannot read some.gguf" in text
    assert "3.00x slow" in text


def test_a_point_that_failed_is_named_and_not_tried_again():
    ours, half = system("treadle", "ok:0.5"), run.System("half", lambda: worker("dies"))
    half.open()
    try:
        run.take_turns([ours, half], [DECODE], 2, 0.0, lambda text: None)
    finally:
        ours.close()
        half.close()
    found = run.report([ours, half], [DECODE], None)
    assert half.seconds[DECODE] == [None, None]
    assert found["points"][0]["failed"] == {"half": "its worker ended with 7"}
    assert "half failed at decode at 8 x 2: its worker ended with 7" in run.table(found)


def test_ratios_are_taken_pair_by_pair():
    assert run._ratio([1.0, 2.0, None], [2.0, 8.0, 9.0]) == 3.0
    assert run._ratio([None], [1.0]) is None


def test_the_share_of_the_limit_comes_from_the_work_that_the_worker_tells():
    treadle = run.System("treadle", lambda: None)
    treadle.seconds[PREFILL] = [2.0]
    treadle.work[PREFILL] = run.Work(read_bytes=1e9, int8_operations=10e9)
    limits = Limits(read_gb_s=1.0, int8_gop_s=100.0, bf16_gop_s=20.0, f32_gop_s=10.0)
    assert run.report([treadle], [PREFILL], limits)["points"][0]["share_of_limit"] == 0.5


def test_a_synthetic_model_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    path = run.model_file("synthetic:llama:tiny:q8_0")
    assert path.read_bytes()[:4] == b"GGUF"
    stamp = path.stat().st_mtime_ns
    assert run.model_file("synthetic:llama:tiny:q8_0").stat().st_mtime_ns == stamp


def test_an_unknown_peer_is_refused_by_name():
    command = [sys.executable, ROOT / "bench" / "peers" / "run.py", "--peers", "llama.cpp,other"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown peers other; known: llama.cpp" in done.stderr
