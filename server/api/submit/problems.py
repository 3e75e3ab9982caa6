"""Collects all that is wrong with a submit, so that one refusal names it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from models.errors import InvalidParametersError
from models.request.params import RequestParams
from server.api.call import Call
from server.api.submit.loras import lacking_loras
from worker.errors import JobError

T = TypeVar("T")


class Problems:
    """The refusals so far. Reading goes on with what is valid."""

    def __init__(self) -> None:
        self._errors: list[InvalidParametersError] = []

    def note(self, error: InvalidParametersError) -> None:
        self._errors.append(error)

    def read(self, read: Callable[[], T], instead: T) -> T:
        """What `read` returns; `instead` where it raises InvalidParametersError, which is noted."""
        try:
            return read()
        except InvalidParametersError as error:
            self.note(error)
            return instead

    async def refuse(self, call: Call, params: RequestParams | None = None) -> None:
        """Raise InvalidParametersError for all of them, and for LoRAs that no live worker has.

        Without other problems the LoRAs are left to `Submission.refusal`: a replay needs none.

        Args:
            call: the submit.
            params: what it asks for; None for a finish, which waits for its LoRAs.
        """
        if not self._errors:
            return
        with suppress(JobError):  # the rest is wrong with or without a broker
            if params and params.lora and (lacking := await lacking_loras(call, params)):
                self.note(lacking)
        raise self._all()

    def _all(self) -> InvalidParametersError:
        named = {
            name: text for error in self._errors for name, text in (error.parameters or {}).items()
        }
        return InvalidParametersError(" ".join(map(str, self._errors)), named or None)
