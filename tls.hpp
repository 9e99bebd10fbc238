// TLS as chatterd offers it: versions 1.2 and 1.3, forward secrecy only.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "result.hpp"

struct SslContextDeleter {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using SslContext = std::unique_ptr<SSL_CTX, SslContextDeleter>;

struct SslDeleter {
  void operator()(SSL* ssl) const { SSL_free(ssl); }
};
using Ssl = std::unique_ptr<SSL, SslDeleter>;

/// What is wrong with certificate or key: one sentence that names the file and says what to do.
struct TlsProblem {
  std::string sentence;
};

/// Reads certificate chain and key (PEM), and checks that they belong together. The context may be
/// used by any thread.
Result<SslContext, TlsProblem> make_server_context(const std::string& cert_file, const std::string& key_file);

/// Days until the certificate in the context ends; negative when it has.
int certificate_days_left(SSL_CTX* context);
