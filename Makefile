# `make help` lists the targets. On Debian each target but install first installs the packages that it needs,
# as root or with sudo. On other systems the error names the missing program.

.DELETE_ON_ERROR:

# The system's own Python if there is one: only that can import Debian's python3-twisted.
PYTHON := $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BUILDDIR = build

DESTDIR =
# The units and the default poetry path contain /usr. Another prefix needs drop-ins.
prefix = /usr
sysconfdir = /etc
pythondir = $(prefix)/lib/python3/dist-packages
unitdir = $(prefix)/lib/systemd/system
presetdir = $(prefix)/lib/systemd/system-preset
catalogdir = $(prefix)/lib/systemd/catalog
libexecdir = $(prefix)/libexec
datadir = $(prefix)/share
completiondir = $(datadir)/bash-completion/completions
docdir = $(datadir)/doc/fastpoetry
mandir = $(datadir)/man
# Debian's name of the program. Most other distributions have /usr/bin/twistd.
twistd = /usr/bin/twistd3

.PHONY: help
help:
	@echo 'make run      serve poetry/ecstasy.txt on 127.0.0.1:10000, in the foreground'
	@echo 'make test     all tests; as root on Debian also on booted systems (TESTS=path for some)'
	@echo 'make lives    random events until the server breaks a promise (SEED=number for one run)'
	@echo 'make mutants  list faults, put into a copy of the code, that no test notices (SAMPLE=150 SEED=27)'
	@echo 'make check    lint, types and sentences'
	@echo 'make bench    measure poems a second and CPU time, and compare other servers, as root'
	@echo 'make docs     API documentation, in build/api'
	@echo 'make deb      Debian packages of a commit, in dist/ (COMMIT=HEAD)'
	@echo 'make install  DESTDIR=$(DESTDIR) prefix=$(prefix) unitdir=$(unitdir) twistd=$(twistd)'
	@echo 'make clean    remove what the other targets made in this folder'
	@echo 'On Debian each target but install first installs the packages that it needs, as root or with sudo.'

# For venv, and for pip to build systemd-python: PyPI has only its source.
VENV_PACKAGES = python3-venv python3-dev gcc libc6-dev libsystemd-dev pkg-config

# $(VENV)/test, $(VENV)/check, ...: the virtual environment with the packages of that extra in
# pyproject.toml. It does not contain fastpoetry, which runs from this folder.
$(VENV)/%: pyproject.toml
	@packaging/need $(VENV_PACKAGES)
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo 'Setting up $@'
	@$(VENV)/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*p["dependencies"], *p["optional-dependencies"]["$*"], sep="\n")' >$@.in
	@$(VENV)/bin/python -m pip install --quiet --upgrade --requirement $@.in
	@mv $@.in $@

# Debian's Twisted, which the package runs on; on other systems the one from pip.
ifneq ($(shell command -v apt-get),)
TWISTD = /usr/bin/twistd3
.PHONY: ready-to-run
ready-to-run:
	@packaging/need python3-twisted python3-systemd systemd netcat-openbsd
else
TWISTD = $(VENV)/bin/twistd
ready-to-run: $(VENV)/test
endif

.PHONY: run
run: ready-to-run
	@$(PYTHON) packaging/run $(TWISTD)

# Tools of the tests. groff, mandoc, jq and bash-completion are for tests of manual pages and completion;
# python3-gi is for GLib's reactor, which PyPI has no package for.
TEST_PACKAGES = systemd netcat-openbsd iproute2 strace openssl jq groff mandoc bash-completion \
	faketime python3-gi python3-twisted
# The system tests make and boot Debian root folders. Without root they are skipped.
ifeq ($(shell id -u),0)
TEST_PACKAGES += systemd-container mmdebstrap rpm
endif

# Without TESTS, all tests run: first shards in parallel, each with a log in LOGS; then alone, those that
# measure time or CPU. Shards share no file, port or machine.
TESTS =
SYSTEMS = bookworm trixie
LOGS = $(BUILDDIR)/tests
PYTEST = $(VENV)/bin/python -m pytest $(PYTESTFLAGS)
BUILT = --package=$(LOGS)/package/dist
HELPER = cd tests && $(abspath $(VENV))/bin/python -m

.PHONY: test
test: $(VENV)/test
	@packaging/need $(TEST_PACKAGES) || echo 'Tests that need these packages are skipped.'
ifneq ($(TESTS),)
	@$(PYTEST) $(SYSTEMS:%=--system=%) $(TESTS)
else
	@rm -rf $(LOGS) && install -d $(LOGS)
	@begun=$$(date +%s) && systems=$$($(HELPER) system.bootable $(SYSTEMS)) && \
	echo 'Running; see tail -f $(LOGS)/*.log' && \
	$(MAKE) --no-print-directory --jobs test-alone SYSTEMS="$$systems" && \
	$(VENV)/bin/python tests/summary.py $$begun $(LOGS)/*.log
endif

SHARDS = modules faults $(SYSTEMS) $(SYSTEMS:%=packages-%)
modules = tests/test_*.py tests/lives
faults = tests/faults
# More than half of the work for a release, in containers of their own.
PACKAGING = tests/system/test_make.py tests/system/test_package.py
$(foreach each,$(SYSTEMS),$(eval packages-$(each) = $(PACKAGING) --system=$(each)))

.PHONY: $(SHARDS:%=test-%) test-alone
$(SHARDS:%=test-%): test-%:
	@$(PYTEST) $(BUILT) -m 'not alone' $(or $($*),tests/system --system=$* $(PACKAGING:%=--ignore=%)) \
		>$(LOGS)/$*.log 2>&1; echo "$*: $$(tail -n 1 $(LOGS)/$*.log)"
$(filter-out test-faults,$(SHARDS:%=test-%)): $(LOGS)/package
$(SYSTEMS:%=test-%): test-%: $(LOGS)/root-%
# All roots: another static pattern would change the stem, $*, in the recipe above.
$(SYSTEMS:%=test-packages-%): $(SYSTEMS:%=$(LOGS)/root-%)

test-alone: $(SHARDS:%=test-%)
	@$(PYTEST) $(BUILT) -m alone $(modules) $(faults) $(if $(SYSTEMS),tests/system $(SYSTEMS:%=--system=%)) \
		>$(LOGS)/alone.log 2>&1; echo "alone: $$(tail -n 1 $(LOGS)/alone.log)"

$(LOGS)/package:
	@$(HELPER) system.package $(abspath $@)
$(LOGS)/root-%:
	@$(HELPER) system.roots $*
	@touch $@

# Random events until the server breaks a promise, or until Ctrl-C.
.PHONY: lives
lives: $(VENV)/test
	@PYTHONPATH=tests $(VENV)/bin/python -m lives.run $(SEED)

SAMPLE = 150
MUTATED = fastpoetry/delivery fastpoetry/protocol.py fastpoetry/proxy \
	fastpoetry/systemd/store.py fastpoetry/systemd/clock.py
.PHONY: mutants
mutants: $(VENV)/test
	@$(VENV)/bin/python tests/mutants.py $(SAMPLE) $(or $(SEED),27) $(MUTATED)

.PHONY: check
check: $(VENV)/check $(VENV)/test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/python tests/prose.py

.PHONY: docs
docs: $(VENV)/check
	@$(VENV)/bin/pydoctor --quiet --warnings-as-errors --docformat=epytext \
		--project-name=fastpoetry --project-base-dir=. --html-output=$(BUILDDIR)/api fastpoetry

.PHONY: bench
bench: $(VENV)/bench
	@packaging/need gcc libc6-dev nginx-light libnginx-mod-stream python3-twisted python3-systemd systemd
	@$(VENV)/bin/python benchmarks/run.py

# Build dependencies of the package, as in packaging/debian/control. fakeroot is for users other than root
# on Debian 12.
DEB_PACKAGES = git build-essential fakeroot debhelper bash-completion dh-python pybuild-plugin-pyproject \
	python3-all python3-hatchling

# A package contains a commit and nothing else, so every build of it gives the same file.
COMMIT = HEAD
DISTDIR = dist
.PHONY: deb
deb: SOURCE = $(abspath $(BUILDDIR))/deb/fastpoetry
deb:
	@packaging/need $(DEB_PACKAGES)
	rm -rf $(dir $(SOURCE))
	install -d $(SOURCE) $(DISTDIR)
	git -c tar.umask=022 archive $(COMMIT) | tar --extract --preserve-permissions --directory=$(SOURCE)
	mv $(SOURCE)/packaging/debian $(SOURCE)
	# Use Debian's Python, not another one in PATH. `make test` runs the tests.
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct $(COMMIT)) DEB_BUILD_OPTIONS=nocheck \
		PATH=/usr/sbin:/usr/bin:/sbin:/bin; \
	cd $(SOURCE) && dpkg-buildpackage --build-profiles=nocheck --unsigned-source --unsigned-changes
	rm -f $(DISTDIR)/*fastpoetry_*
	cp $(dir $(SOURCE))*.deb $(SOURCE)_*.dsc $(SOURCE)_*.tar.* $(DISTDIR)

INSTALL = install -D --mode=644
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' fastpoetry/__init__.py)
# Installed files that contain the name of twistd.
NAMING = $(DESTDIR)$(unitdir)/fastpoetry*.service $(DESTDIR)$(mandir)/man8/fastpoetry*.8 \
	$(DESTDIR)$(docdir)/examples/cores/*.service $(DESTDIR)$(completiondir)/_$(notdir $(twistd))
.PHONY: install
install:
	for d in $(patsubst %/__init__.py,%,$(wildcard fastpoetry/__init__.py fastpoetry/*/__init__.py)); do \
		$(INSTALL) --target-directory=$(DESTDIR)$(pythondir)/$$d $$d/*.py || exit; done
	$(INSTALL) fastpoetry/py.typed $(DESTDIR)$(pythondir)/fastpoetry/py.typed
	$(INSTALL) --target-directory=$(DESTDIR)$(pythondir)/twisted/plugins twisted/plugins/*.py
	$(INSTALL) --target-directory=$(DESTDIR)$(unitdir) packaging/systemd/*.service \
		packaging/systemd/fastpoetry*.socket
	cp --no-dereference packaging/systemd/metrics-fastpoetry@.socket $(DESTDIR)$(unitdir)
	for d in packaging/systemd/*.d; do \
		$(INSTALL) --target-directory=$(DESTDIR)$(unitdir)/$${d##*/} $$d/*.conf || exit; done
	install -D --mode=755 --target-directory=$(DESTDIR)$(libexecdir)/fastpoetry packaging/systemd/announce
	$(INSTALL) --target-directory=$(DESTDIR)$(presetdir) packaging/systemd/50-fastpoetry.preset
	$(INSTALL) --target-directory=$(DESTDIR)$(catalogdir) packaging/systemd/fastpoetry.catalog
	$(INSTALL) --target-directory=$(DESTDIR)$(datadir)/fastpoetry/poetry poetry/*.txt
	install -d $(DESTDIR)$(sysconfdir)/fastpoetry/poetry
	install -d $(DESTDIR)$(sysconfdir)/fastpoetry/proxy
	for command in $(sort twistd $(notdir $(twistd))); do \
		$(INSTALL) packaging/completion/fastpoetry $(DESTDIR)$(completiondir)/_$$command || exit; done
	for page in $(wildcard packaging/man/*.[1-8]); do \
		$(INSTALL) --target-directory=$(DESTDIR)$(mandir)/man$${page##*.} $$page || exit; done
	$(INSTALL) --target-directory=$(DESTDIR)$(docdir) SECURITY.md
	$(INSTALL) --target-directory=$(DESTDIR)$(docdir)/docs docs/scaling.md
	for file in $$(cd packaging && find examples -type f); do \
		$(INSTALL) packaging/$$file $(DESTDIR)$(docdir)/$$file || exit; done
	$(INSTALL) --target-directory=$(DESTDIR)$(docdir)/examples/haproxy packaging/haproxy/*
	metadata=$$($(PYTHON) packaging/metadata) && echo "$$metadata" | $(INSTALL) /dev/stdin \
		$(DESTDIR)$(pythondir)/fastpoetry-$(VERSION).dist-info/METADATA
	sed -i -e 's|/usr/bin/twistd3|$(twistd)|g' -e 's|twistd3|$(notdir $(twistd))|g' $(NAMING)
	for name in fastpoetry@.socket fastpoetry.service fastpoetry.socket; do \
		ln -sf fastpoetry@.service.8 $(DESTDIR)$(mandir)/man8/$$name.8 || exit; done
	ln -sf fastpoetry-proxy@.service.8 $(DESTDIR)$(mandir)/man8/fastpoetry-proxy@.socket.8
ifeq ($(DESTDIR),)
	# An installation that is not staged: update the caches of Twisted, systemd and journald.
	$(PYTHON) -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
	! test -d /run/systemd/system || systemctl daemon-reload
	journalctl --update-catalog
endif

.PHONY: clean
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f twisted/plugins/dropin.cache twistd.pid
	find . -name __pycache__ -prune -exec rm -rf {} +
