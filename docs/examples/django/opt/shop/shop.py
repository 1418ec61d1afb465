import logging
import logging.config

from daphne.server import Server
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
from twisted.internet import reactor

from fastpoetry.systemd.notify import startNotifying


def order(request, what):
    logging.getLogger("shop").warning("out of %s", what, extra={"customer": "ada"})
    return HttpResponse("Sorry.\n")


settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    LOGGING={
        "version": 1,
        "handlers": {"journal": {"class": "fastpoetry.systemd.journal.JournalHandler"}},
        "root": {"handlers": ["journal"], "level": "INFO"},
    },
    ROOT_URLCONF=__name__,
)
urlpatterns = [path("<what>", order)]
application = get_asgi_application()

if __name__ == "__main__":
    Server(
        application,
        endpoints=["adopted:"],
        ready_callable=lambda: startNotifying(reactor),
    ).run()
