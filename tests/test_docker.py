"""What docker-compose.yml and the Dockerfiles promise; they are read, not run, so no container tools are needed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import Settings
from service.settings import HttpSettings

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())  # YAML has any types
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
LONG_RUNNING = [name for name, service in SERVICES.items() if service["restart"] != "no"]
BUILT = {name: ROOT / service["build"]["dockerfile"] for name, service in SERVICES.items() if "build" in service}
UNITS = {"m": 2**20, "g": 2**30}

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def last(dockerfile: Path, instruction: str) -> str:
    return [arguments for word, arguments in instructions(dockerfile) if word == instruction][-1]


def copied_from_the_context(dockerfile: Path) -> list[str]:
    copies = [arguments.split() for word, arguments in instructions(dockerfile) if word == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def size_bytes(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1]]


@each_service
def test_every_winnow_variable_is_a_setting(service: dict[str, Any]) -> None:
    known = {f"WINNOW_{name.upper()}" for name in (*Settings.model_fields, *HttpSettings.model_fields)}
    assert {name for name in service.get("environment", {}) if name.startswith("WINNOW_")} <= known


@each_dockerfile
def test_every_winnow_variable_of_an_image_is_a_setting(dockerfile: Path) -> None:
    known = {f"WINNOW_{name.upper()}" for name in (*Settings.model_fields, *HttpSettings.model_fields)}
    assert set(re.findall(r"\b(WINNOW_\w+)=", last(dockerfile, "ENV"))) <= known


def test_every_dockerfile_is_built_by_a_service() -> None:
    assert set(BUILT.values()) == set(DOCKERFILES)


@each_service
def test_every_container_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert size_bytes(service["mem_limit"]) > 0
    assert service["pids_limit"] > 0
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_runs_as_root(name: str) -> None:
    user = SERVICES[name].get("user") or last(BUILT[name], "USER")
    assert user.split(":")[0] not in {"", "0", "root"}


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_container_that_stays_is_checked(name: str) -> None:
    if name in BUILT:
        assert "CMD [" in last(BUILT[name], "HEALTHCHECK")
    else:
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_only_the_service_is_reachable_and_only_from_this_machine() -> None:
    published = [(name, port) for name, service in SERVICES.items() for port in service.get("ports", [])]
    assert [name for name, _ in published] == ["service"]
    assert [port for _, port in published if not port.startswith("127.0.0.1:")] == []


def test_nothing_but_the_service_has_a_way_out() -> None:
    internal = {name for name, network in COMPOSE["networks"].items() if network and network.get("internal")}
    assert [name for name, service in SERVICES.items() if not set(service["networks"]) <= internal] == ["service"]


def test_the_password_has_no_default() -> None:
    uses = re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", (ROOT / "docker-compose.yml").read_text())
    assert len(uses) == 2
    assert all(use.startswith("${POSTGRES_PASSWORD:?") for use in uses)


@pytest.mark.parametrize("name", ["service", "worker"])
def test_nothing_starts_before_the_tables_and_the_broker(name: str) -> None:
    assert SERVICES["migrations"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES[name]["depends_on"] == {
        "migrations": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }


def test_service_and_worker_share_the_data_folder() -> None:
    folder = SERVICES["worker"]["environment"]["WINNOW_DATA_FOLDER"]
    assert SERVICES["worker"]["volumes"] == SERVICES["service"]["volumes"] == [f"data:{folder}"]
    assert SERVICES["service"]["environment"]["WINNOW_DATA_FOLDER"] == folder


def test_a_job_meets_its_memory_limit_before_the_container_does() -> None:
    environment = SERVICES["worker"]["environment"]
    assert int(environment["WINNOW_MEMORY_LIMIT_BYTES"]) < size_bytes(SERVICES["worker"]["mem_limit"])


def test_the_broker_forgets_nothing() -> None:
    options = SERVICES["redis"]["command"]
    assert "--appendonly yes" in options
    assert "--maxmemory-policy noeviction" in options
    assert SERVICES["redis"]["volumes"] == ["broker:/data"]


def test_both_images_have_the_same_user_because_they_share_files() -> None:
    assert len({last(dockerfile, "USER") for dockerfile in DOCKERFILES}) == 1


@each_dockerfile
def test_an_image_can_be_built_on_another_base(dockerfile: Path) -> None:
    assert instructions(dockerfile)[0][0] == "ARG"
    assert instructions(dockerfile)[0][1].startswith("BASE_IMAGE=python:3.11-")
    assert ("FROM", "${BASE_IMAGE} AS python") in instructions(dockerfile)


@each_dockerfile
def test_an_image_gets_signals_itself(dockerfile: Path) -> None:
    command = json.loads(last(dockerfile, "CMD"))  # fails for the shell form
    assert command[0] not in {"sh", "bash"}


@each_dockerfile
def test_an_image_is_pinned(dockerfile: Path) -> None:
    installs = [text for word, text in instructions(dockerfile) if word == "RUN" and " install --no-cache-dir" in text]
    assert installs
    assert all("--constraint constraints.txt" in text or "--no-deps" in text for text in installs)


def test_the_service_image_has_no_torch() -> None:
    text = (ROOT / "docker" / "service.Dockerfile").read_text()
    assert "[worker]" not in text
    assert "workers" not in copied_from_the_context(ROOT / "docker" / "service.Dockerfile")


@each_dockerfile
def test_what_an_image_copies_exists_and_is_in_the_build_context(dockerfile: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().split("\n")
    for source in copied_from_the_context(dockerfile):
        assert (ROOT / source).exists()
        assert f"!{source}" in ignore or f"!{source}/**" in ignore
    assert "*" in ignore
