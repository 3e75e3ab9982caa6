"""The URL of the broker is checked before anything is started, and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.broker.url import parse, shown, standard
from worker.settings import WorkerSettings


@pytest.mark.parametrize(
    "url",
    [
        "redis://broker:hunter2/0",
        "redis://ann:hunter2",
        "redis://:hunter2@broker:99999/0",
        "redis://:hunter2@broker/0?db=first",
        "redis://:hunter2@broker/0?no_such_option=1",
        "redis://:hunter2@broker/0?ssl_cert_reqs=none",
        "rediss://:hunter2@broker/0?ssl_cert_reqs=perhaps",
        "rediss://:hunter2@broker/0?ssl_ca_certs=/no/such/file",
        "sentinel://:hunter2@one:26379,two:26379",
        "sentinel://:hunter2@one:port/mochi",
        "sentinel://:hunter2@one,,two/mochi",
        "sentinel://:hunter2@one,:26379/mochi",
        "sentinel://:hunter2@one/mochi/first",
        "sentinel://:hunter2@one/mochi?ssl_cert_reqs=none",
        "sentinel://one/mochi?sentinel_pass=hunter2",
        "sentinelx://:hunter2@one/mochi",
        "http://:hunter2@broker",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="redis_url") as error:
        WorkerSettings(data_dir=tmp_path, redis_url=url)
    assert "hunter2" not in str(error.value)
    assert error.value.error_count() == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://broker:6379/0",
        "redis://broker?max_connections=9",
        "rediss://:pass@[::1]:6380/1",
        "redis://[::1]:6380/1",
        "redis://ann:p%23%2F%5B@broker:6379/0?client_name=a@b/c",
        "valkey://broker:6379/0",
        "valkeys://:pass@broker?ssl_cert_reqs=none",
        "rediss://broker?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///run/valkey.sock",
        "sentinel://one/mochi",
        "sentinel://ann:p%40ss@one:26379,[::1]:26380,two/mochi/1?sentinel_password=x&db=2",
        "sentinels://one/mochi?ssl_cert_reqs=none",
    ],
)
def test_a_url_that_can_be_used_is_taken(url: str, tmp_path: Path) -> None:
    assert WorkerSettings(data_dir=tmp_path, redis_url=url).redis_url == url


def test_checkpoints_and_the_step_cache_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot be used with MOCHI_STEP_CACHE") as error:
        WorkerSettings(data_dir=tmp_path, step_cache=0.1, checkpoint_steps=5)
    assert error.value.errors()[0]["loc"] == ("checkpoint_steps",)
    for alone in ({"step_cache": 0.1, "checkpoint_steps": 0}, {"checkpoint_steps": 5}):
        WorkerSettings(data_dir=tmp_path, **alone)


def test_a_group_has_an_even_number_of_cards_that_divides_the_model(tmp_path: Path) -> None:
    for count in ("1", "2", "4", "6", "8"):
        settings = WorkerSettings(data_dir=tmp_path, gpus_per_video=count)
        assert settings.gpus_per_video == int(count)
    for count in ("0", "3", "5", "7", "16"):
        with pytest.raises(ValidationError, match="It must be 1, 2, 4, 6 or 8"):
            WorkerSettings(data_dir=tmp_path, gpus_per_video=count)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sentinel://one:26379", "sentinel://[user:password@]host1:26379,host2:26379/NAME[/DB]"),
        ("redis://:pa#ss@broker:6379/0", "# is %23"),
        ("redis://ann:pa/ss@broker:6379/0", "/ is %2F"),
        ("valkeys://:pa[ss@broker", "[ is %5B"),
        ("sentinel://:pa/ss@one/mochi", "Percent-encode"),
        ("redis://:pa?ss@broker:6379/0", "? is %3F"),
        ("sentinel://ann:pa?ss@one/mochi", "? is %3F"),
        ("redis://broker?no_such_option=1", "There is no option no_such_option"),
        ("redis://broker?ssl_ca_certs=ca.pem", "rediss:// or sentinels://"),
        ("rediss://broker?ssl_ca_certs=/no/file", "ssl_ca_certs: /no/file cannot be read"),
    ],
)
def test_a_refusal_says_what_is_wrong(url: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as error:
        WorkerSettings(data_dir=tmp_path, redis_url=url)
    assert why in str(error.value)


def test_a_file_of_tls_may_be_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ca.pem").touch()
    url = "rediss://broker/0?ssl_check_hostname=false&ssl_ca_certs=~/ca.pem"
    assert parse(url).options["ssl_ca_certs"] == str(tmp_path / "ca.pem")
    assert str(tmp_path) in standard(url)  # what clients are made from


def test_sentinels_and_their_master_have_credentials_of_their_own() -> None:
    address = parse(
        "sentinels://ann:p%40ss@one,[::1]:7/mochi/3?ssl_cert_reqs=none"
        "&sentinel_username=bob&sentinel_password=x"
    )
    assert address.sentinels == (("one", 26379), ("::1", 7))
    assert address.name == "mochi"
    options = address.options
    assert (options["username"], options["password"], options["db"]) == ("ann", "p@ss", 3)
    assert address.sentinel_options == {
        "username": "bob",
        "password": "x",
        "ssl": True,
        "ssl_cert_reqs": "none",
    }
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://broker:6379/0", "redis://broker:6379/0"),
        ("rediss://ann:hunter2@[::1]/0?password=hunter2", "rediss://[::1]/0"),
        ("sentinel://:hunter2@one:1,two:2/mochi?x=hunter2", "sentinel://one:1,two:2/mochi"),
        ("redis://ann:1/hunter2@broker", "redis://broker"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, text: str) -> None:
    assert shown(url) == text
