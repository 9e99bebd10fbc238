# chatterd's build. The user's own CXXFLAGS, LDFLAGS and CXX are respected; what the project itself
# needs stands apart from them. Sanitizers are variants with folders of their own:
#   make            ./chatterd, optimised
#   make asan       build/asan/chatterd under AddressSanitizer and UBSan; likewise make tsan
# `make help` lists all targets.

CXX      ?= g++
CXXFLAGS ?= -O2 -g
# The tests wait more than they compute: compiling them is what takes time.
TEST_CXXFLAGS ?= -O0 -g
PKG_CONFIG ?= pkg-config
VARIANT  ?= release
BUILD    := build/$(VARIANT)

WARNINGS := -Wall -Wextra -Wshadow -Wconversion
SANITIZE_release :=
SANITIZE_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANITIZE_tsan := -O1 -fsanitize=thread -fno-omit-frame-pointer
SANITIZE := $(SANITIZE_$(VARIANT))

# The library's include folders count as system folders, so that the warnings speak of this project only.
as_system = $(patsubst -I%,-isystem %,$(1))
HTTPLIB_CFLAGS := $(call as_system,$(shell $(PKG_CONFIG) --cflags cpp-httplib))
HTTPLIB_LIBS   := $(shell $(PKG_CONFIG) --libs cpp-httplib)
PQ_CFLAGS      := $(call as_system,$(shell $(PKG_CONFIG) --cflags libpq))
PQ_LIBS        := $(shell $(PKG_CONFIG) --libs libpq)
TLS_LIBS       := $(shell $(PKG_CONFIG) --libs openssl)
# Catch2 3 is a library with a pkg-config file; Catch2 2 is one header and has nothing to link.
CATCH_LIBS     := $(shell $(PKG_CONFIG) --atleast-version=3 catch2 2>/dev/null && $(PKG_CONFIG) --libs catch2)

PROJECT_CXXFLAGS := -std=c++20 -pthread -fPIE -fstack-protector-strong $(WARNINGS) $(SANITIZE) \
  $(HTTPLIB_CFLAGS) $(PQ_CFLAGS) -I. -I$(BUILD)
PROJECT_LDFLAGS  := -pthread -pie -Wl,-z,relro,-z,now $(SANITIZE)
PRODUCT_LIBS     := $(HTTPLIB_LIBS) $(PQ_LIBS) $(TLS_LIBS)

# Every .cpp of the top level is a module of the product; chatterd.cpp holds main().
PRODUCT  := $(patsubst %.cpp,$(BUILD)/%.o,$(sort $(wildcard *.cpp)))
MODULES  := $(filter-out $(BUILD)/chatterd.o,$(PRODUCT))
HARNESS  := $(patsubst %.cpp,$(BUILD)/%.o,$(sort $(wildcard tests/harness/*.cpp)))
UNIT     := $(patsubst %.cpp,$(BUILD)/%.o,$(sort $(wildcard tests/unit_*.cpp)) tests/main.cpp)
CONTRACT := $(patsubst %.cpp,$(BUILD)/%.o,$(sort $(wildcard tests/contract_*.cpp)) tests/long_answers.cpp tests/main.cpp)
FAULTS   := $(patsubst %.cpp,$(BUILD)/%.o,$(sort $(wildcard tests/faults/*.cpp)) tests/main.cpp)
BENCHERS := $(patsubst %.cpp,$(BUILD)/%.o,$(sort $(wildcard tests/bench/*.cpp)))

ifeq ($(VARIANT),release)
BINARY := chatterd
else
BINARY := $(BUILD)/chatterd
endif

.PHONY: all
all: $(BINARY) ## ./chatterd (the default)

$(BINARY): $(PRODUCT)
	$(CXX) $(PROJECT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(PRODUCT_LIBS)

$(BUILD)/unit_tests: $(UNIT) $(MODULES)
	$(CXX) $(PROJECT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(CATCH_LIBS) $(PRODUCT_LIBS)

$(BUILD)/contract_tests: $(CONTRACT) $(HARNESS)
	$(CXX) $(PROJECT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(CATCH_LIBS) $(PQ_LIBS) $(TLS_LIBS)

$(BUILD)/fault_tests: $(FAULTS) $(HARNESS)
	$(CXX) $(PROJECT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(CATCH_LIBS) $(PQ_LIBS) $(TLS_LIBS)

$(BUILD)/ollama_stand_in: $(BUILD)/tests/stand_in.o $(HARNESS)
	$(CXX) $(PROJECT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(PQ_LIBS) $(TLS_LIBS)

$(BUILD)/bench_load: $(filter-out %/ollama.o,$(BENCHERS))
$(BUILD)/bench_ollama: $(filter %/ollama.o %/plan.o,$(BENCHERS))
$(BUILD)/bench_load $(BUILD)/bench_ollama: $(BUILD)/http1.o $(BUILD)/text.o $(BUILD)/tests/harness/net.o
	$(CXX) $(PROJECT_LDFLAGS) $(LDFLAGS) -o $@ $^ $(TLS_LIBS)

# They share the processors with what they measure.
$(BENCHERS): TEST_CXXFLAGS = $(CXXFLAGS)

$(BUILD)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(if $(filter tests/%,$<),$(TEST_CXXFLAGS),$(CXXFLAGS)) $(PROJECT_CXXFLAGS) $(CPPFLAGS) -MMD -MP -c -o $@ $<

# schema.sql is compiled in, so that the binary alone can make the table.
$(BUILD)/db_schema.o: $(BUILD)/schema_sql.inc
$(BUILD)/schema_sql.inc: schema.sql
	@mkdir -p $(@D)
	{ printf 'R"sql('; cat $<; printf ')sql"\n'; } >$@

.PHONY: tests stand-in asan tsan
tests: $(BINARY) $(BUILD)/unit_tests $(BUILD)/contract_tests $(BUILD)/fault_tests $(BUILD)/bench_load $(BUILD)/bench_ollama ## chatterd and its test programs
stand-in: $(BUILD)/ollama_stand_in ## the stand-in for Ollama that quickstart.sh uses
asan tsan: ## chatterd and unit tests under ASan+UBSan, or TSan, in build/asan or build/tsan
	$(MAKE) VARIANT=$@ build/$@/chatterd build/$@/unit_tests

# The fuzz targets are functions: the unit tests run them over their corpora, libFuzzer, in the variant
# `fuzz`, over everything else.
FUZZ_CXX     ?= $(shell command -v clang++ 2>/dev/null || echo clang++-14)
FUZZ_TARGETS := request ndjson sse options http1
FUZZ_SHARED  := $(BUILD)/tests/fuzz/reference.o $(BUILD)/tests/harness/sse.o
FUZZ_OBJECTS := $(FUZZ_TARGETS:%=$(BUILD)/tests/fuzz/%.o) $(FUZZ_SHARED)
FUZZ_MODULES := $(patsubst %,$(BUILD)/%.o,config env_file http1 json_check json_view log metrics ndjson net ollama relay request sse text upstreams)
SANITIZE_fuzz := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

$(BUILD)/unit_tests: $(FUZZ_OBJECTS) $(BUILD)/tests/harness/certificate.o

ifeq ($(VARIANT),fuzz)
PROJECT_CXXFLAGS += -fsanitize=fuzzer-no-link $(SANITIZE_fuzz) -DFUZZ_ENTRY

$(FUZZ_TARGETS:%=$(BUILD)/%): $(BUILD)/%: $(BUILD)/tests/fuzz/%.o $(FUZZ_SHARED) $(FUZZ_MODULES)
	$(CXX) $(PROJECT_LDFLAGS) -fsanitize=fuzzer $(SANITIZE_fuzz) $(LDFLAGS) -o $@ $^
endif

.PHONY: fuzz
fuzz: ## the fuzz targets with libFuzzer, in build/fuzz; scripts/fuzz.sh runs them
	$(MAKE) VARIANT=fuzz CXX="$(FUZZ_CXX)" $(FUZZ_TARGETS:%=build/fuzz/%)

-include $(FUZZ_OBJECTS:.o=.d)

# ---- Installing ----
# Folders as GNU has them; DESTDIR is put before each. The configuration is in /etc whatever the prefix is.
PREFIX      ?= /usr/local
DESTDIR     ?=
BINDIR      ?= $(PREFIX)/bin
LIBDIR      ?= $(PREFIX)/lib/chatterd
MANDIR      ?= $(PREFIX)/share/man
UNITDIR     ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
CONFDIR     := /etc/chatterd
UNITS       := chatterd.service chatterd.socket
INSTALLED   := $(BINDIR)/chatterd $(MANDIR)/man8/chatterd.8 $(UNITS:%=$(UNITDIR)/%) $(SYSUSERSDIR)/chatterd.conf \
  $(addprefix $(LIBDIR)/,reload certbot-hook schema.sql scripts/lib.sh scripts/setup-db.sh scripts/make-cert.sh)
# The one place where the version stands is the program.
VERSION      = $(shell sed -n 's/.*kVersion = "\([^"]*\)".*/\1/p' *.hpp *.cpp)

.PHONY: install uninstall deb
install: $(BINARY) ## install for systemd, below PREFIX (/usr/local) and DESTDIR; an existing configuration stays
	install -D -m 755 $(BINARY) $(DESTDIR)$(BINDIR)/chatterd
	install -D -m 644 packaging/chatterd.8 $(DESTDIR)$(MANDIR)/man8/chatterd.8
	install -D -m 644 packaging/chatterd.sysusers $(DESTDIR)$(SYSUSERSDIR)/chatterd.conf
	install -D -m 755 -t $(DESTDIR)$(LIBDIR) packaging/reload packaging/certbot-hook
	install -D -m 755 -t $(DESTDIR)$(LIBDIR)/scripts scripts/setup-db.sh scripts/make-cert.sh
	install -m 644 -t $(DESTDIR)$(LIBDIR)/scripts scripts/lib.sh
	install -m 644 -t $(DESTDIR)$(LIBDIR) schema.sql
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(CONFDIR)
	for unit in $(UNITS); do \
	  sed 's#@BINDIR@#$(BINDIR)#; s#@LIBDIR@#$(LIBDIR)#' packaging/$$unit >$(DESTDIR)$(UNITDIR)/$$unit && chmod 644 $(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	[ -e $(DESTDIR)$(CONFDIR)/chatterd.env ] || install -m 640 packaging/chatterd.env $(DESTDIR)$(CONFDIR)/chatterd.env
	@if [ -z "$(DESTDIR)" ]; then packaging/announce $(LIBDIR) $(SYSUSERSDIR)/chatterd.conf; fi
uninstall: ## remove what was installed; configuration (/etc/chatterd), state and user stay
	rm -f $(INSTALLED:%=$(DESTDIR)%)
	rmdir --ignore-fail-on-non-empty $(DESTDIR)$(LIBDIR)/scripts $(DESTDIR)$(LIBDIR) 2>/dev/null || true

deb: ## a Debian package, in build/deb
	packaging/make-deb $(VERSION)

.PHONY: bench
bench: ## measure chatterd by scripts/bench.sh; BENCH="--rounds 5 one short" are its arguments
	scripts/bench.sh $(BENCH)

.PHONY: check
check: ## includes that point the wrong way, shell scripts
	scripts/check.sh

.PHONY: readme
readme: $(BUILD)/unit_tests ## write the options in README.md, the manual page and the environment file anew
	DOCUMENTS_UPDATE=1 $(BUILD)/unit_tests "[documents]"

.PHONY: clean help
clean: ## remove what was built
	rm -rf build chatterd
help: ## this list
	@sed -n 's/^\([a-z][a-z -]*\):.*## /  \1: /p' Makefile

-include $(PRODUCT:.o=.d) $(UNIT:.o=.d) $(CONTRACT:.o=.d) $(FAULTS:.o=.d) $(HARNESS:.o=.d) $(BENCHERS:.o=.d) $(BUILD)/tests/stand_in.d
