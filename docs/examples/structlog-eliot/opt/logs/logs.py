import logging

import eliot
import structlog

from fastpoetry.systemd.journal import JournalHandler

logging.basicConfig(level=logging.INFO, handlers=[JournalHandler()])
structlog.configure(
    processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)
structlog.get_logger("shop").bind(customer="ada").warning("out of tea", orders=[3, 4])

# logging refuses these keys in extra.
TAKEN = {*vars(logging.makeLogRecord({})), "asctime", "message"}


def toJournal(message):
    """An eliot message as one record: its keys are fields, and a failed action is an error."""
    name = message.get("action_type") or message.get("message_type")
    failed = message.get("action_status") == "failed"
    level = logging.ERROR if failed else logging.INFO
    own = {key: value for key, value in message.items() if key not in TAKEN}
    logging.getLogger("eliot").log(level, "%s", name, extra={"eliot": message, **own})


eliot.add_destinations(toJournal)
with eliot.start_action(action_type="brew", cups=2):
    eliot.log_message(message_type="poured", cup=1)
