"""Sends webhooks: signed POSTs as Standard Webhooks describe them, with retries.

Every gateway has one sender. A delivery is retried until it gets a 2xx or a 410, or has used up its
attempts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from random import SystemRandom

import structlog
from standardwebhooks import Webhook

from models.version import this_build
from server.webhooks.caller import Caller, NoCallError
from worker.errors import BrokerUnavailableError, KeyEndedError, StorageError
from worker.process.shutdown import end_tasks
from worker.store.webhooks.deliveries import Deliveries, Delivery, State

LOOK_SECONDS = 0.5
"""Between two looks for due deliveries."""
MOST_AT_ONCE = 32
STOP_SECONDS = 2.0
"""For attempts that run when the gateway stops. Those that are cut off are repeated."""
NOTE_TRIES = 10
NOTE_PAUSE_SECONDS = 1.0

BodyOf = Callable[[Delivery], Awaitable[str]]

_log = structlog.get_logger()


class Sender:
    """Runs from `start` to `stop`, beside the gateway."""

    def __init__(self, deliveries: Deliveries, caller: Caller, body_of: BodyOf) -> None:
        """`body_of` may raise BrokerUnavailableError and StorageError: the delivery is retried."""
        self._deliveries = deliveries
        self._caller = caller
        self._body_of = body_of
        self._random = SystemRandom()
        self._sending: dict[asyncio.Task[None], str] = {}
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send due deliveries."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Take no more deliveries, and let running attempts finish for a moment."""
        if self._loop is not None:
            await end_tasks([self._loop])
        if self._sending:
            await asyncio.wait(self._sending, timeout=STOP_SECONDS)
        for task in self._sending:
            task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                if await self._take():
                    continue
            except BrokerUnavailableError:
                pass  # logged by the health check of the broker
            except Exception:  # noqa: BLE001 (other deliveries may still succeed)
                _log.exception("webhooks.bug")
            await asyncio.sleep(LOOK_SECONDS)

    async def _take(self) -> bool:
        """Start attempts for due deliveries, up to the limit. False when there were none."""
        room = MOST_AT_ONCE - len(self._sending)
        if not room:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            return True
        taken = await self._deliveries.take(room, Counter(self._sending.values()))
        for delivery in taken:
            task = asyncio.create_task(self._deliver(delivery))
            self._sending[task] = delivery.owner
            task.add_done_callback(self._sending.pop)
        return bool(taken)

    async def _deliver(self, delivery: Delivery) -> None:
        log = _log.bind(
            request_id=delivery.request_id,
            delivery_id=delivery.delivery_id,
            attempt=delivery.attempts,
        )
        try:
            status = await self._send(delivery)
            outcome, state = f"HTTP {status}", _state(status)
        except (NoCallError, StorageError) as error:
            outcome, state = str(error), State.DUE
        except KeyEndedError:
            outcome, state = "the API key was revoked", State.GIVEN_UP
        except BrokerUnavailableError:
            outcome, state = "the broker did not answer", State.DUE
        except Exception:
            log.exception("webhook.bug")
            outcome, state = "internal error", State.DUE
        again_in = delivery.pause(self._random) if state is State.DUE else 0.0
        if again_in is None:
            state = State.GIVEN_UP
        again_in = again_in or 0.0
        log.info("webhook.tried", state=state, outcome=outcome, again_in=round(again_in) or None)
        await self._note(delivery, state, outcome, again_in)

    async def _send(self, delivery: Delivery) -> int:
        body = await self._body_of(delivery)
        now = await self._deliveries.now()
        signatures = [
            Webhook(secret).sign(delivery.request_id, now, body)
            for secret in await self._deliveries.secrets(delivery.owner)
        ]
        headers = {
            "content-type": "application/json",
            "user-agent": f"mochi-server/{this_build().version}",
            "webhook-id": delivery.request_id,
            "webhook-timestamp": f"{int(now.timestamp())}",
            "webhook-signature": " ".join(signatures),
        }
        return await self._caller.post(delivery.url, body.encode(), headers, delivery.owner)

    async def _note(self, delivery: Delivery, state: State, outcome: str, pause: float) -> None:
        """With retries: an attempt that is not noted is repeated."""
        for _ in range(NOTE_TRIES):
            try:
                await self._deliveries.note(delivery, state, outcome, pause)
            except BrokerUnavailableError:
                await asyncio.sleep(NOTE_PAUSE_SECONDS)
            else:
                return


def _state(status: int) -> State:
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return State.DELIVERED
    return State.GIVEN_UP if status == HTTPStatus.GONE else State.DUE
