import logging

import scrapy

from fastpoetry.systemd.journal import JournalHandler
from fastpoetry.systemd.notify import startNotifying


class Titles(scrapy.Spider):
    name = "titles"
    start_urls = ["file:///opt/crawl/page.html"]

    @classmethod
    def from_crawler(cls, crawler):
        logging.getLogger().addHandler(JournalHandler())
        spider = super().from_crawler(crawler)
        crawler.signals.connect(spider.opened, scrapy.signals.spider_opened)
        return spider

    def opened(self):
        from twisted.internet import reactor  # Scrapy has installed the reactor of its settings

        startNotifying(reactor)

    def parse(self, response):
        title = response.css("title::text").get()
        # Not self.logger: that of Scrapy 2.8 drops extra.
        logging.getLogger(self.name).warning("found %s", title, extra={"title": title})
