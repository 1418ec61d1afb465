"""
A caching proxy for another server's poem, as a deployment:
C{twistd --nodaemon --python poetry-proxy.tac}.

The settings are those of C{twistd fastpoetry-proxy}, kept in a file. It serves nothing by itself:
plain Python only reads it.
"""

from twisted.application.service import Application

from fastpoetry.proxytap import Options, makeService

upstream = "tcp:host=127.0.0.1:port=10000"
port = 11000
interface = "localhost"

# twistd runs it under another name; what follows tries the port.
if __name__ != "__main__":
    options = Options()
    options.parseOptions(["--upstream", upstream, "--port", str(port), "--iface", interface])
    application = Application("fastpoetry-proxy")
    makeService(options).setServiceParent(application)
