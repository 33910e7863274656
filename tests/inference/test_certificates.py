"""Certificates: found again for the same model and code only, and never when edited."""

import hashlib
import json
import shutil
import time
from importlib import import_module

import msgspec
import pytest

from treadle.inference import certificates
from treadle.inference.certificates import Certificate, CertificateStore, Identity, code_hash
from treadle.inference.engine import describe
from treadle.inference.home import certificates as store_of_user
from treadle.inference.llm import LLM
from treadle.inference.options import EngineOptions
from treadle.inference.weight_cache import content_name

IDENTITY = Identity(plan="p", kernels="k", backend="cpu", numerics="exact", quantize=None, source="s")
CERTIFICATE = Certificate(
    model="m",
    identity=IDENTITY,
    content="c" * 64,
    figures={"rel_err": 1e-6},
    versions={"treadle": "0.1"},
    date="2026-01-01T00:00:00+00:00",
)


@pytest.fixture
def store(tmp_path):
    return CertificateStore(tmp_path / "certificates")


def test_found_by_content_wherever_the_files_are(store):
    store.keep(CERTIFICATE)
    moved = msgspec.structs.replace(IDENTITY, source="elsewhere")
    assert store.find(moved, "c" * 64) == CERTIFICATE.sealed()
    assert store.find(IDENTITY, "d" * 64) is None


def test_found_by_the_files_where_the_content_is_not_known(store):
    store.keep(CERTIFICATE)
    assert store.find(IDENTITY, None) == CERTIFICATE.sealed()
    assert store.find(msgspec.structs.replace(IDENTITY, source="elsewhere"), None) is None


@pytest.mark.parametrize("field", ["plan", "kernels", "backend", "numerics", "quantize"])
def test_anything_else_that_computes_is_another_subject(store, field):
    store.keep(CERTIFICATE)
    assert store.find(msgspec.structs.replace(IDENTITY, **{field: "other"}), "c" * 64) is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["figures"].update(rel_err=1e-9),
        lambda record: record["identity"].update(source="s2"),
        lambda record: record.update(date="2027-01-01T00:00:00+00:00"),
        lambda record: record.update(digest="0" * 64),
        lambda record: record.pop("content"),
        lambda record: record.update(more=1),
    ],
)
def test_an_edited_certificate_does_not_count(store, edit, caplog):
    path = store.keep(CERTIFICATE)
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    assert store.find(IDENTITY, "c" * 64) is None
    assert store.find(IDENTITY, None) is None
    assert "does not count" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_certificate_does_not_count(store, damage):
    store.keep(CERTIFICATE).write_bytes(damage)
    assert store.find(IDENTITY, "c" * 64) is None


def test_a_file_that_others_may_write_does_not_count(store):
    store.keep(CERTIFICATE).chmod(0o666)
    assert store.find(IDENTITY, "c" * 64) is None


def test_a_certificate_under_another_name_does_not_count(store):
    path = store.keep(CERTIFICATE)
    other = msgspec.structs.replace(IDENTITY, numerics="fast")
    shutil.copy(path, path.with_name(f"{other.key}-{'c' * 32}.json"))
    assert store.find(other, "c" * 64) is None


def test_a_newer_run_replaces_and_the_folder_stays_small(store, monkeypatch):
    store.keep(CERTIFICATE)
    newer = msgspec.structs.replace(CERTIFICATE, date="2026-02-02T00:00:00+00:00")
    store.keep(newer)
    assert [path.read_text().count("2026-02-02") for path in store.directory.iterdir()] == [1]
    monkeypatch.setattr(certificates, "MAX_CERTIFICATES", 3)
    for i in range(6):
        store.keep(msgspec.structs.replace(CERTIFICATE, content=f"{i}" * 64))
    assert len(list(store.directory.iterdir())) == 3


def test_code_hash_sees_every_byte(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_hash([tmp_path / "a.py"])
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_hash([tmp_path / "a.py"]) != before


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def certify(path, **options):
    with LLM(path, **options) as llm:
        content = content_name(llm.engine.files)
        found = msgspec.structs.replace(CERTIFICATE, identity=llm.info.identity, content=content)
    store_of_user().keep(found)


def certified(path, **options):
    with LLM(path, **options) as llm:
        return llm.info.certified


def test_an_engine_tells_whether_its_model_is_certified(home, tiny_checkpoint, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama"), path)
    assert not certified(path, numerics="exact")
    certify(path, numerics="exact")
    assert certified(path, numerics="exact")
    assert describe(path, EngineOptions(numerics="exact")).info.certified
    assert not certified(path, numerics="fast")
    assert not certified(path, numerics="exact", quantize="q8_0")
    assert not certified(path, numerics="exact", kv_dtype="f16")
    assert not certified(path, backend="reference", max_num_seqs=1)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert not certified(path, numerics="exact")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_another_byte_of_a_backends_code_is_another_subject(backend, home, tiny_checkpoint, monkeypatch):
    path, options = tiny_checkpoint("llama"), {"backend": backend, "numerics": "exact", "max_num_seqs": 1}
    certify(path, **options)
    assert certified(path, **options)
    module = import_module(f"treadle.inference.backends.{backend}")
    hashed = module.code_hash
    names = []

    def one_byte_more(files):
        names.extend(file.name for file in files)
        return hashlib.sha256(hashed(files).encode() + b"\n").hexdigest()

    monkeypatch.setattr(module, "code_hash", one_byte_more)
    assert not certified(path, **options)
    assert {"cpu": "cpu_lowering.py", "reference": "reference_pages.py"}[backend] in names


def test_weights_that_the_cache_has_hashed_are_known_at_another_place(home, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TREADLE_CACHE_LIMIT", "1GB")
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(tiny_checkpoint("llama"), one)
    certify(one, numerics="exact")
    shutil.copytree(one, other)
    time.sleep(0.05)  # the cache remembers no file younger than a tick of the clock
    exact = EngineOptions(numerics="exact")
    assert not describe(other, exact).info.certified  # nobody has read it as a whole yet
    LLM(other, numerics="exact").close()  # the weight cache has, when this returns
    assert describe(other, exact).info.certified
