"""What is said of errors whose text may hold anything."""

import pytest

from scaletrain.storage.failures import is_lasting, reason_of, scrub

URL = "https://user:hunter22@host/x.tar?sig=hunter22"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot open {URL}",
        "redirected to https://other:hunter22@host/y?X-Amz-Signature=hunter22",
        "Authorization: Bearer hunter22",
        "aws_secret_access_key=hunter22",
        "{'X-Amz-Security-Token': 'hunter22'}",
        "AccessKeyId=hunter22; region=eu",
        "password = hunter22",
    ],
)
def test_credentials_are_taken_out_of_a_librarys_words(text: str) -> None:
    assert "hunter22" not in scrub(text, URL)
    assert "hunter22" not in reason_of(OSError(5, text), URL)


def test_values_of_secret_environment_variables_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correcthorsebattery")
    assert scrub("signed with correcthorsebattery for x", URL) == "signed with ... for x"


def test_plain_words_stay() -> None:
    text = "Cannot connect to host 127.0.0.1:9 ssl:default [Connect call failed]"
    assert scrub(text, URL) == text


def test_only_what_lasts_ends_the_tries() -> None:
    assert is_lasting(FileNotFoundError("x"))
    assert is_lasting(PermissionError("x"))
    assert is_lasting(OSError("Forbidden: b/corpus/o/a.tar\nno access"))  # what gcsfs says of status 403
    assert not is_lasting(OSError(5, "Forbidden: a disk that is broken"))
    assert not is_lasting(ConnectionResetError("x"))
    assert not is_lasting(TimeoutError("x"))
