"""
Two poems, each on its own port, as a deployment: C{twistd --nodaemon --python two-poems.tac}.

Each is a block with a C{MultiService} of its own, and both are in one process, under one set of
limits. It serves nothing by itself: plain Python only reads it.
"""

from twisted.application.service import Application

from fastpoetry.tap import Options, findPoetryPath, makeService

ports = {"ecstasy": 10000, "fascination": 10001}
interface = "localhost"
poetryPath = findPoetryPath(__file__)

# twistd runs it under another name; what follows reads the poems and tries the ports.
if __name__ != "__main__":
    arguments = ["--poetry-path", poetryPath]
    for poem, port in ports.items():
        arguments += ["--poem", poem, "--port", str(port), "--iface", interface]
    options = Options()
    options.parseOptions(arguments)
    application = Application("fastpoetry")
    makeService(options).setServiceParent(application)
