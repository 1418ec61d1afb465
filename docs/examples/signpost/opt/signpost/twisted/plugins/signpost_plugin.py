from twisted.application.service import ServiceMaker

signpost = ServiceMaker("signpost", "signpost", "A signpost on the web.", "signpost")
