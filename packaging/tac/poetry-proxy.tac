"""
A caching proxy for another server's poem: C{twistd --nodaemon --python poetry-proxy.tac}.

The settings are options of C{twistd fastpoetry-proxy}. Under plain Python this file serves nothing.
"""

from twisted.application.service import Application

from fastpoetry.proxytap import Options, makeService

upstream = "tcp:host=127.0.0.1:port=10000"
port = 11000
interface = "localhost"

# twistd runs this file under another name. The rest tries the port.
if __name__ != "__main__":
    options = Options()
    options.parseOptions(["--upstream", upstream, "--port", str(port), "--iface", interface])
    application = Application("fastpoetry-proxy")
    makeService(options).setServiceParent(application)
