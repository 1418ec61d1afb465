"""
Two poems, each on its own port: C{twistd --nodaemon --python two-poems.tac}.

Each poem is a block with its own C{MultiService}. Both share one process and one set of limits.
Under plain Python this file serves nothing.
"""

from twisted.application.service import Application

from fastpoetry.tap import Options, findPoetryPath, makeService

ports = {"ecstasy": 10000, "fascination": 10001}
interface = "localhost"
poetryPath = findPoetryPath(__file__)

# twistd runs this file under another name. The rest reads the poems and tries the ports.
if __name__ != "__main__":
    arguments = ["--poetry-path", poetryPath]
    for poem, port in ports.items():
        arguments += ["--poem", poem, "--port", str(port), "--iface", interface]
    options = Options()
    options.parseOptions(arguments)
    application = Application("fastpoetry")
    makeService(options).setServiceParent(application)
