"""Tests for L{fastpoetry.systemd.command}, with commands of other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from processes import Workplace, findTwistd, waitUntil
from test_notify import Systemd
from twisted.application.service import Application, IServiceMaker, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fastpoetry.systemd import command
from fastpoetry.systemd.command import Options, makeService
from fastpoetry.systemd.notify import NotifyService


class OtherOptions(usage.Options):
    """The options of another command."""

    optParameters = [["port", "p", 17, "A port.", int]]
    optFlags = [["loud", "l", "Loudly."]]


class OtherService(Service):
    """The service of the other command."""

    def __init__(self, options: OtherOptions) -> None:
        self.options = options

    def reload(self) -> None:
        """Reload."""

    def status(self) -> str:
        """Return a status."""
        return "well"


@implementer(IPlugin, IServiceMaker)
class Other:
    """Another command."""

    tapname = "other"
    description = "Something else."
    options = OtherOptions

    def makeService(self, options: Any) -> OtherService:
        """Make the service."""
        return OtherService(options)


class CommandTests(SynchronousTestCase):
    """Tests in this process."""

    def setUp(self) -> None:
        self.patch(command, "getPlugins", self.plugins)

    def plugins(self, interface: Any) -> Iterator[Any]:
        """Return the other command and this one."""
        yield Other()
        yield import_module("twisted.plugins.fastpoetry_plugin").systemd

    def parse(self, *arguments: str) -> Options:
        """@return: the parsed options."""
        options = Options()
        options.parseOptions(arguments)
        return options

    def hooks(self) -> dict[str, Any]:
        """@return: the arguments of the notifying service, made for the other command."""
        seen: list[dict[str, Any]] = []

        class Notify(Service):
            def __init__(self, reactor: object, **hooks: Any) -> None:
                seen.append(hooks)

        self.patch(command, "NotifyService", Notify)
        makeService(self.parse("other"))
        return seen[0]

    def test_plugin(self) -> None:
        """The plugin of twistd that is named C{systemd} has our options and makes our service."""
        maker = import_module("twisted.plugins.fastpoetry_plugin").systemd
        verifyObject(IServiceMaker, maker)
        self.assertEqual(maker.tapname, "systemd")
        self.assertIs(maker.options, Options)
        self.assertIs(maker.makeService, makeService)

    def test_options(self) -> None:
        """The other command parses its own options, whatever their names."""
        options: Any = self.parse("other", "--port", "18", "-l")
        self.assertEqual(options.subOptions, {"port": 18, "loud": 1})

    def test_parent(self) -> None:
        """The other command can look up twistd's options in its parent options."""
        options: Any = self.parse("other")
        parent = options.subOptions.parent
        self.assertRaises(KeyError, lambda: parent["logfile"])
        self.assertEqual(parent.get("logfile", "none"), "none")
        options.parent = {"logfile": "-"}
        self.assertEqual((parent["logfile"], parent.get("logfile")), ("-", "-"))

    def test_itself(self) -> None:
        """The command cannot run itself."""
        self.assertRaises(usage.UsageError, self.parse, "systemd", "other")

    def test_nothing(self) -> None:
        """Without a command, one line shows the usage."""
        self.patch(sys, "argv", ["/usr/bin/twistd3", "systemd"])
        why = self.assertRaises(SystemExit, self.parse)
        self.assertTrue(str(why).startswith("systemd: which command? twistd3 systemd COMMAND"))

    def test_both(self) -> None:
        """A command and a file together are refused."""
        self.assertRaises(SystemExit, self.parse, "--python=x.tac", "other")

    def test_noFile(self) -> None:
        """A missing file is refused in one line with its name."""
        why = self.assertRaises(SystemExit, makeService, self.parse("--python=nowhere.tac"))
        self.assertEqual(str(why).count("nowhere.tac: [Errno 2] No such file"), 1)

    def test_user(self) -> None:
        """
        twistd changes to the user that an application names, unless twistd has an option for it.
        """
        application = Application("x", uid=7, gid=8)
        self.patch(command, "loadApplication", lambda *_: application)
        options = self.parse("--python=x.tac")
        parent: Any = {"uid": None, "gid": 9}
        options.parent = parent
        for service in makeService(options):
            self.addCleanup(service.stopService)
        self.assertEqual(parent, {"uid": 7, "gid": 9})

    def test_inner(self) -> None:
        """The methods of several services are all called, and their texts form one status."""
        called: list[str] = []

        class Inner(OtherService):
            def __init__(self, text: str) -> None:
                self.text = text

            def status(self) -> str:
                return self.text

            def reload(self) -> None:
                called.append(self.text)

        services = MultiService()
        for text in "ab":
            Inner(text).setServiceParent(services)
        self.patch(Other, "makeService", lambda *_: services)
        hooks = self.hooks()
        self.assertEqual(hooks["status"](), "a; b")
        self.successResultOf(Deferred.fromCoroutine(hooks["reload"]()))
        self.assertEqual(called, ["a", "b"])

    def test_service(self) -> None:
        """
        The other command's service is the first one, unchanged, and its own text is the status.
        """
        services: MultiService = makeService(self.parse("other", "--port=18"))
        other, notify = services
        assert isinstance(other, OtherService)
        assert isinstance(notify, NotifyService)
        self.assertEqual(other.options["port"], 18)
        self.addCleanup(notify.stopService)  # handles SIGHUP from here on

    def test_talksItself(self) -> None:
        """A command that notifies systemd itself is not given a second notifier."""
        inner, middle = MultiService(), MultiService()
        notify: Any = NotifyService(None, clock=self)
        notify.setServiceParent(inner)
        inner.setServiceParent(middle)
        self.patch(Other, "makeService", lambda *_: middle)
        self.assertEqual(list(makeService(self.parse("other"))), [middle])

    def test_oneFails(self) -> None:
        """If one service cannot reload, the others do, and each cause is told or logged."""
        done: list[str] = []

        class Failing(Service):
            def reload(self) -> None:
                done.append("failed")
                raise SystemExit("no file")

        services = MultiService()
        for service in (Failing(), Failing(), OtherService(OtherOptions())):
            service.setServiceParent(services)
        self.patch(OtherService, "reload", lambda _: done.append("well"))
        self.patch(Other, "makeService", lambda *_: services)
        self.failureResultOf(Deferred.fromCoroutine(self.hooks()["reload"]()), SystemExit)
        self.assertEqual(done, ["failed", "failed", "well"])
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 1)

    def test_annotation(self) -> None:
        """A method counts, even if its annotation has a name that only type checkers import."""
        made: dict[str, Any] = {"Service": Service}
        exec("class Typed(Service):\n    def reload(self) -> Missing: pass", made)
        self.patch(Other, "makeService", lambda *_: made["Typed"]())
        self.assertIsNotNone(self.hooks()["reload"])

    def test_othersMethods(self) -> None:
        """An attribute named C{status} or C{reload} that is not such a method is ignored."""

        class Odd(Service):
            status = "up"

            def reload(self, configuration: object) -> None:
                self.configuration = configuration

        self.patch(Other, "makeService", lambda *_: Odd())
        hooks = self.hooks()
        self.assertIsNone(hooks["reload"])
        self.assertEqual(hooks["status"](), "other: Something else.")


class ProcessTests(SynchronousTestCase):
    """Tests for C{twistd systemd web}."""

    def setUp(self) -> None:
        self.place = Workplace(self)
        self.systemd = Systemd(str(self.place.folder / "notify"))
        self.addCleanup(self.systemd.close)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start twistd under our systemd."""
        environ = [f"{key}={value}" for key, value in self.systemd.environ.items()]
        options = ("--nodaemon", "--pidfile=", "--reactor=poll")
        return self.place.begin("env", *environ, *findTwistd(), *options, "systemd", *arguments)

    def test_ready(self) -> None:
        """The program is ready when it listens, and its status says what it is."""
        process = self.start("web", "--listen=tcp:0:interface=127.0.0.1", "--path=.")
        heard: list[str] = []

        def isReady() -> bool:
            heard.extend(self.systemd.heard())
            return "READY=1" in heard

        waitUntil(isReady, "READY")
        self.assertTrue(heard[0].startswith("STATUS=web: "), heard)
        process.terminate()
        output, errors = process.communicate(timeout=60)
        self.assertIn("STOPPING=1", self.systemd.heard())
        self.assertNotIn("Traceback", output + errors)

    def test_help(self) -> None:
        """The help lists the commands; each command prints its own help."""
        for arguments, said in ((("--help",), "web"), (("web", "--help"), "--listen=")):
            output, errors = self.start(*arguments).communicate(timeout=60)
            self.assertIn(said, output)
            self.assertEqual(errors, "")

    def test_nothing(self) -> None:
        """Without a command the program ends with one line and status 1."""
        process = self.start()
        output, errors = process.communicate(timeout=60)
        self.assertEqual((process.returncode, output, errors.count("\n")), (1, "", 1))
