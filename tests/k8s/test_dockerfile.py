"""The Dockerfile, as far as it can be judged without building it: against the manifests, the repository and the pins."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.k8s.dockerfile import ROOT, environment, last, stages
from tests.k8s.pod import APP, VENV
from tests.k8s.rules import Variant
from tests.pods import render


def copied() -> list[str]:
    """Sources of COPY that come from the work tree."""
    copies = [rest.split() for stage in stages() for word, rest in stage if word == "COPY"]
    return [source for words in copies if not words[0].startswith("--from=") for source in words[:-1]]


def tracked(path: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", "--", path], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_it_copies_what_git_has_and_the_builder_is_given() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore, "everything is left out that is not named"
    for source in copied():
        assert tracked(source), f"COPY {source}: git has no such file"
        assert f"!{source.split('/')[0]}" in ignore, f"COPY {source}: .dockerignore leaves it out"
    for line in ignore:
        if line.startswith("!"):
            assert line[1:] in {source.split("/")[0] for source in copied()}, f".dockerignore: nothing copies {line[1:]}"


def test_it_holds_what_the_pods_run() -> None:
    for overlay in sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir()):
        variant = Variant(render(f"k8s/overlays/{overlay}"))
        assert {container["workingDir"] for container in variant.containers} == {last("WORKDIR")} == {APP}
        for script in [word for word in variant.command if word.endswith(".py")]:
            assert (ROOT / script).is_file() and script.split("/")[0] in copied(), f"{overlay}: {script} is not in the image"


def test_its_user_is_the_pods_and_not_root() -> None:
    user, group = map(int, last("USER").split(":"))
    security = Variant(render("k8s/overlays/cpu")).pod["securityContext"]
    assert user > 0 and (user, group) == (security["runAsUser"], security["runAsGroup"])
    commands = " ".join(rest for word, rest in stages()[-1] if word == "RUN")
    assert f"useradd --uid {user} --user-group" in commands


def test_its_packages_are_the_pinned_ones() -> None:
    python = re.search(r'python_requires=">=(3\.\d+),', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert python is not None
    bases = {stage[0][1].split()[0] for stage in stages()}
    assert len(bases) == 1, "a virtual environment only runs on the Python that it was made with"
    assert bases.pop().startswith(f"python:{python[1]}-slim")
    installs = [rest for word, rest in stages()[0] if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2 and "--constraint constraints.txt" in installs[1]
    assert re.search(r"grep '\^torch==' constraints\.txt", installs[0]), "torch's version is that of constraints.txt"
    assert not re.search(r"[a-z]==\d", " ".join(installs)), "versions are in constraints.txt"
    assert environment()["PATH"].split(":")[0] == f"{VENV}/bin"


@pytest.mark.parametrize("word", ["ADD", "ONBUILD", "SHELL"])
def test_it_needs_no_surprises(word: str) -> None:
    assert all(name != word for stage in stages() for name, _ in stage)


def test_it_holds_no_secret() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"token|password|secret|BEGIN [A-Z ]*KEY", text, re.IGNORECASE)
