"""The gateway's contact with the broker, for its log: also while nobody asks for anything."""

from __future__ import annotations

import asyncio

import structlog

from worker.contact import Contact
from worker.errors import BrokerUnavailableError
from worker.intake import Intake

INTERVAL_SECONDS = 2.0

_log = structlog.get_logger()


async def stay_in_contact(intake: Intake, contact: Contact) -> None:
    """Ask what /readyz asks, over and over, until cancelled."""
    while True:
        try:
            if contact.is_new:
                contact.warn(await intake.dangers())
            await intake.live_workers()
            contact.made()
        except BrokerUnavailableError as error:
            contact.lost(error)
        except Exception:  # noqa: BLE001 (a log that falls silent says that all is well)
            _log.exception("contact.bug")
        await asyncio.sleep(INTERVAL_SECONDS)
