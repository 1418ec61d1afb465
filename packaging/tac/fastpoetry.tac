"""
One poem on one port: C{twistd --nodaemon --python fastpoetry.tac}.

The settings are options of C{twistd fastpoetry}. Under plain Python this file serves nothing.
"""

from twisted.application.service import Application

from fastpoetry.tap import Options, findPoetryPath, makeService

poem = "ecstasy"
port = 10000
interface = "localhost"
poetryPath = findPoetryPath(__file__)

# twistd runs this file under another name. The rest reads the poem and tries the port.
if __name__ != "__main__":
    options = Options()
    options.parseOptions(
        ["--poetry-path", poetryPath, "--poem", poem, "--port", str(port), "--iface", interface]
    )
    application = Application("fastpoetry")
    makeService(options).setServiceParent(application)
