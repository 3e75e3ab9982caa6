from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.request.catalogue import MOCHI
from server.cli.main import app
from server.errors import SettingsError
from server.settings import ServerSettings, load_settings


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("MOCHI_"):
            monkeypatch.delenv(name)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a number without an entry in /etc/passwd."""
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", dict[int, str]().__getitem__)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> ServerSettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_by_default_only_this_machine_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.body_bytes, settings.public_url) == (131072, "")


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, MOCHI_PORT="9000", MOCHI_PUBLIC_URL="https://videos.example:8443")
    assert (settings.port, settings.public_url) == (9000, "https://videos.example:8443")


@pytest.mark.parametrize("path", ["", "/mochi", "/api/v2.1/~mochi"])
def test_the_base_of_links_may_have_a_path_and_ends_without_a_slash(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for slash in ("", "/"):
        settings = load(monkeypatch, MOCHI_PUBLIC_URL=f"https://videos.example{path}{slash}")
        assert settings.public_url == f"https://videos.example{path}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOCHI_PORT", "http"),
        ("MOCHI_PORT", "65536"),
        ("MOCHI_PUBLIC_URL", "videos.example"),
        ("MOCHI_PUBLIC_URL", "https://videos.example/mochi?a=b"),
        ("MOCHI_PUBLIC_URL", "https://videos.example/<mochi>"),
        ("MOCHI_PUBLIC_URL", "https://videos.example/\nx"),
        ("MOCHI_PUBLIC_URL", "javascript://videos.example"),
        ("MOCHI_TRUSTED_PROXIES", "*"),
        ("MOCHI_TRUSTED_PROXIES", "proxy.example"),
        ("MOCHI_TRUSTED_PROXIES", "10.0.0.7:80"),
        ("MOCHI_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("MOCHI_TRUSTED_PROXIES", "10.0.0.7,0.0.0.0/0"),
        ("MOCHI_TRUSTED_PROXIES", "::/0"),
        ("MOCHI_TLS_KEY", "key.pem"),
        ("MOCHI_DOCS", "perhaps"),
        ("MOCHI_BODY_BYTES", "0"),
        ("MOCHI_V1_SECONDS", "0"),
        ("MOCHI_V1_SECONDS", "nan"),
        ("MOCHI_V1_SECONDS", "inf"),
        ("MOCHI_MOST_WAITING", "-1"),
        ("MOCHI_WORKERS", "1.5"),
        ("MOCHI_DRAIN_SECONDS", "nan"),
        ("MOCHI_MOCK", "perhaps"),
        ("MOCHI_REDIS_URL", "http://broker"),
        ("MOCHI_LEASE_SECONDS", "1"),
        ("MOCHI_CHECKPOINT_STEPS", "-1"),
        ("MOCHI_CHECKPOINT_STEPS", "2.5"),
        ("MOCHI_RETENTION_SECONDS", "inf"),
        ("MOCHI_OUTPUTS", "/videos"),
        ("MOCHI_OUTPUTS", "s3://"),
        ("MOCHI_OUTPUTS", "s3://ab"),
        ("MOCHI_OUTPUTS", "s3://Bucket"),
        ("MOCHI_OUTPUTS", "gs://bucket"),
        ("MOCHI_OUTPUTS", "s3://key:secret@bucket"),
        ("MOCHI_OUTPUTS", "s3://bucket//x"),
        ("MOCHI_OUTPUTS", "s3://bucket/../x"),
        ("MOCHI_OUTPUTS", "s3://bucket/x y"),
        ("MOCHI_OUTPUTS", "s3://bucket/x\n"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as error:
        load(monkeypatch, **{name: value})
    assert str(error.value).startswith(f"{name}: ")
    assert repr(value) in str(error.value) or name == "MOCHI_REDIS_URL"


@pytest.mark.parametrize("proxies", ["10.0.0.7", "10.0.0.0/8, fd00::/8", "::1,", ""])
def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, proxies: str) -> None:
    assert load(monkeypatch, MOCHI_TRUSTED_PROXIES=proxies).trusted_proxies == proxies


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("MOCHI_DEVICE", "cpu", "like cuda or cuda:1"),
        ("MOCHI_REVISION", "main", "40 hex digits"),
        ("MOCHI_PUBLIC_URL", "videos.example", "like https://videos.example"),
        ("MOCHI_OUTPUTS", "bucket/prefix", "like s3://bucket/prefix"),
        ("MOCHI_REDIS_URL", "broker", "like redis://host:6379/0"),
    ],
)
def test_a_value_of_a_wrong_form_is_answered_with_a_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, form: str
) -> None:
    with pytest.raises(SettingsError, match="The form is wrong") as error:
        load(monkeypatch, **{name: value})
    assert form in str(error.value)


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"MOCHI_{name.upper()}" for name in ServerSettings.model_fields]
    settings = load(monkeypatch, **dict.fromkeys(names, ""))
    assert settings == ServerSettings.model_construct(weights=MOCHI.weights)
    assert not settings.model_fields_set


@pytest.mark.parametrize("chosen", [{"MOCHI_MOCK": "true"}, {"MOCHI_ENGINE": "fake"}], ids=str)
def test_settings_of_real_weights_are_known_to_mean_nothing_without_them(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str]
) -> None:
    others = {"MOCHI_FP8": "true", "MOCHI_DEVICE": "cuda:1", "MOCHI_LORA": "", "MOCHI_PORT": "1"}
    assert load(monkeypatch, **others).ignored == []
    assert load(monkeypatch, **others, **chosen).ignored == ["MOCHI_DEVICE", "MOCHI_FP8"]


def test_a_group_means_nothing_to_the_light_mock_but_the_speed_that_it_simulates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = {"MOCHI_GPUS_PER_VIDEO": "2"}
    light = group | {"MOCHI_ENGINE": "fake"}
    assert load(monkeypatch, **light).ignored == ["MOCHI_GPUS_PER_VIDEO"]
    assert load(monkeypatch, **light, MOCHI_MOCK_SPEED="h100").ignored == []


PATHS = (
    *("DATA_DIR", "WEIGHTS", "LORA", "MODERATION_TERMS", "MODERATION_TEXT", "MODERATION_FRAMES"),
    *("KEYS_FILE", "TLS_CERT", "TLS_KEY"),
)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch, HOME="/home/ada", **{f"MOCHI_{name}": "~/mochi/x" for name in PATHS}
    )
    found = {name: str(getattr(settings, name.lower())) for name in PATHS}
    assert found == dict.fromkeys(PATHS, "/home/ada/mochi/x")


def test_a_tilde_in_each_lora_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    loras = "~/a.safetensors=0.5, ~/b.safetensors,c~.safetensors"
    settings = load(monkeypatch, HOME="/home/ada", MOCHI_LORA=loras)
    home = "/home/ada"
    assert settings.lora == f"{home}/a.safetensors=0.5,{home}/b.safetensors,c~.safetensors"


def test_a_home_folder_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"MOCHI_KEYS_FILE.*no such home folder"):
        load(monkeypatch, MOCHI_KEYS_FILE="~no-such-user/keys.toml")


def test_a_relative_folder_is_refused_where_the_working_directory_has_been_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert load(monkeypatch, MOCHI_DATA_DIR="mochi").data_dir == tmp_path / "gone" / "mochi"
    (tmp_path / "gone").rmdir()
    with pytest.raises(SettingsError, match=r"MOCHI_DATA_DIR: .* has been deleted"):
        load(monkeypatch, MOCHI_DATA_DIR="mochi")
    assert load(monkeypatch, MOCHI_DATA_DIR=str(tmp_path)).data_dir == tmp_path


def test_without_a_home_folder_the_data_folder_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, homeless: None
) -> None:
    with pytest.raises(SettingsError) as error:
        load(monkeypatch)
    refusal = "MOCHI_DATA_DIR: got '~/.local/share/mochi-server'. There is no such home folder"
    assert str(error.value).startswith(refusal)
    assert str(load(monkeypatch, MOCHI_DATA_DIR="/srv/mochi").data_dir) == "/srv/mochi"


def test_help_needs_no_home_folder(homeless: None) -> None:
    assert CliRunner().invoke(app, ["up", "--help"]).exit_code == 0


def test_a_password_in_a_refused_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as error:
        load(monkeypatch, MOCHI_REDIS_URL="http://:hunter2@broker")
    assert "hunter2" not in str(error.value)


def test_of_two_settings_that_exclude_each_other_both_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError) as error:
        load(monkeypatch, MOCHI_CHECKPOINT_STEPS="5", MOCHI_STEP_CACHE="0.1")
    assert str(error.value).startswith(
        "MOCHI_CHECKPOINT_STEPS: got '5'. It cannot be used with MOCHI_STEP_CACHE: "
        "set one of the two "
    )


@pytest.mark.parametrize(
    "prices",
    [
        {"MOCHI_PRICE_BASE": "1000000.000001"},
        {"MOCHI_PRICE_FRAME_STEP": "83.4"},
        {"MOCHI_PRICE_GPU_SECOND": "2000", "MOCHI_PRICE_MOST_GPU_SECONDS": "501"},
    ],
)
def test_prices_beyond_what_can_be_reckoned_with_are_refused(
    monkeypatch: pytest.MonkeyPatch, prices: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match="MOCHI_PRICE_"):
        load(monkeypatch, **prices)


def test_a_factor_counts_for_the_most_expensive_request(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = {"MOCHI_PRICE_FRAME_STEP": "80", "MOCHI_PRICE_FACTORS": "mochi-1-fast=4"}
    assert load(monkeypatch, **prices).price_factors == "mochi-1-fast=4"  # with its fewer steps
    with pytest.raises(SettingsError, match=r"MOCHI_PRICE_FACTORS: .* 1,024,000"):
        load(monkeypatch, **prices | {"MOCHI_PRICE_FACTORS": "mochi-1-fast=5"})


@pytest.mark.parametrize(
    "factors", ["mochi-1-fast", "mochi-2=1", "mochi-1=-1", "mochi-1=0.0000001", "mochi-1=1001"]
)
def test_a_factor_is_of_a_model_and_in_a_range(
    monkeypatch: pytest.MonkeyPatch, factors: str
) -> None:
    with pytest.raises(SettingsError, match="is no factor: write MODEL=FACTOR with one of mochi-1"):
        load(monkeypatch, MOCHI_PRICE_FACTORS=factors)


def test_a_price_has_at_most_six_decimals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(load(monkeypatch, MOCHI_PRICE_BASE="0.000001").price_base) == "0.000001"
    with pytest.raises(SettingsError, match=r"MOCHI_PRICE_BASE: .* 6 decimal places"):
        load(monkeypatch, MOCHI_PRICE_BASE="0.0000001")


def test_an_unknown_variable_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"MOCHI_PROT: .* Did you mean MOCHI_PORT"):
        load(monkeypatch, MOCHI_PROT="9000")


def test_a_variable_like_no_other_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as error:
        load(monkeypatch, MOCHI_QQQQQQQQ="1")
    assert str(error.value) == "MOCHI_QQQQQQQQ: there is no such setting."


def test_the_variables_of_clients_and_of_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(monkeypatch, MOCHI_URL="http://here", MOCHI_API_KEY="mochi_x", MOCHIS_PORT="x")


LINKS = {
    "MOCHI_PORT": "tcp://10.96.0.7:8000",
    "MOCHI_SERVICE_HOST": "10.96.0.7",
    "MOCHI_SERVICE_PORT": "8000",
    "MOCHI_SERVICE_PORT_HTTP": "8000",
    "MOCHI_PORT_8000_TCP": "tcp://10.96.0.7:8000",
    "MOCHI_PORT_8000_TCP_PROTO": "tcp",
    "MOCHI_PORT_8000_TCP_PORT": "8000",
    "MOCHI_PORT_8000_TCP_ADDR": "10.96.0.7",
    "MOCHI_REDIS_SERVICE_HOST": "fd00::7",
    "MOCHI_REDIS_PORT": "tcp://[fd00::7]:6379",
    "MOCHI_MY_GATEWAY_PORT_53_UDP": "udp://10.96.0.7:53",
}
"""As Kubernetes sets them for Services named mochi, mochi-redis and mochi-my-gateway."""


def test_variables_that_kubernetes_sets_for_a_service_are_no_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(monkeypatch, **LINKS).port == 8000
    assert not LINKS.keys() & os.environ.keys()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("MOCHI_PORT=tcp://10.96.0.7:8000 is not used as a setting")
    assert "enableServiceLinks: false" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOCHI_SERVICE_HOST", "example"),
        ("MOCHI_PORT_8000_TCP", "8000"),
        ("MOCHI_REDIS_PORT", "6379"),
        ("MOCHI_PORT", "tcp"),
    ],
)
def test_variables_of_the_same_names_with_other_values_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SettingsError, match=name):
        load(monkeypatch, **{name: value})
