"""
One poem on one port, as a deployment: C{twistd --nodaemon --python fastpoetry.tac}.

The settings are those of C{twistd fastpoetry}, kept in a file. It serves nothing by itself: plain
Python only reads it.
"""

from twisted.application.service import Application

from fastpoetry.tap import Options, findPoetryPath, makeService

poem = "ecstasy"
port = 10000
interface = "localhost"
poetryPath = findPoetryPath(__file__)

# twistd runs it under another name; what follows reads the poem and tries the port.
if __name__ != "__main__":
    options = Options()
    options.parseOptions(
        ["--poetry-path", poetryPath, "--poem", poem, "--port", str(port), "--iface", interface]
    )
    application = Application("fastpoetry")
    makeService(options).setServiceParent(application)
