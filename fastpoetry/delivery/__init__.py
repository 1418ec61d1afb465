"""
Sends poems on sockets, limits the readers, and counts the connections.

The policy (L{Policy<fastpoetry.delivery.policy.Policy>}) moves a connection through these states:

 - Arriving: it owes a TLS handshake or a PROXY header, or queues for a reader's place
   (L{fastpoetry.delivery.arrivals}).
 - Waiting: it has a reader's place, and the source has no poem yet.
 - Sending: its poem is under way, and deadlines apply (L{fastpoetry.delivery.limits}).
 - Lingering: the kernel has its whole poem, and the client has not closed yet
   (L{fastpoetry.delivery.lingering}).

The fast port (L{fastpoetry.delivery.fastport}) skips the first two. A poem that goes out at once
skips the third.
"""
