#include "tls.hpp"

#include <openssl/err.h>
#include <openssl/x509.h>

#include <cerrno>
#include <ctime>
#include <fstream>

#include "metrics.hpp"
#include "net.hpp"

namespace {

// AES-128 first, as OpenSSL itself would not have it: with it goes SHA-256, for which processors have instructions
// and which a handshake computes some fifty times; AES-256 would bring SHA-384.
constexpr const char* kCiphersTls12 = "ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20";
constexpr const char* kCiphersTls13 = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr const char* kSessionIdContext = "chatterd";

std::string openssl_reason() {
  const unsigned long error = ERR_get_error();
  const char* reason = error == 0 ? nullptr : ERR_reason_error_string(error);
  ERR_clear_error();
  return reason == nullptr ? "it is not in PEM form" : reason;
}

// Why a file can't be read, "" if it can.
std::string unreadable(const std::string& file) {
  errno = 0;
  const std::ifstream stream(file);
  return stream.good() ? "" : errno_text(errno);
}

TlsProblem problem(const std::string& option, const std::string& file, const std::string& reason) {
  return {option + ": " + file + " can't be used: " + reason +
          ". Give another file, make one with scripts/make-cert.sh, or serve plain HTTP with --http."};
}

double seconds_since_1970(const ASN1_TIME* time) {
  std::tm parts{};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? static_cast<double>(timegm(&parts)) : 0;
}

}  // namespace

Result<SslContext, TlsProblem> make_server_context(const std::string& cert_file, const std::string& key_file) {
  if (const std::string reason = unreadable(cert_file); !reason.empty()) return problem("--cert", cert_file, reason);
  if (const std::string reason = unreadable(key_file); !reason.empty()) return problem("--key", key_file, reason);
  ERR_clear_error();
  SslContext context(SSL_CTX_new(TLS_server_method()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_cipher_list(context.get(), kCiphersTls12);
  SSL_CTX_set_ciphersuites(context.get(), kCiphersTls13);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA | SSL_OP_NO_COMPRESSION);
  // A connection without traffic gives its buffers back (34 KB each), and one read takes in more than
  // a record's five bytes of header.
  SSL_CTX_set_mode(context.get(), SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  // Clients are shown what the file holds. In each handshake OpenSSL would look for more, in a store that is empty.
  SSL_CTX_set_mode(context.get(), SSL_MODE_NO_AUTO_CHAIN);
  SSL_CTX_set_read_ahead(context.get(), 1);
  // Sessions are resumed by tickets, which the clients keep.
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 1);
  SSL_CTX_set_session_id_context(context.get(), reinterpret_cast<const unsigned char*>(kSessionIdContext), 8);

  if (SSL_CTX_use_certificate_chain_file(context.get(), cert_file.c_str()) != 1) return problem("--cert", cert_file, openssl_reason());
  if (SSL_CTX_use_PrivateKey_file(context.get(), key_file.c_str(), SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(context.get()) != 1) {
    return problem("--key", key_file, openssl_reason());
  }
  metrics::certificate_ends_at.set(seconds_since_1970(X509_get0_notAfter(SSL_CTX_get0_certificate(context.get()))));
  return context;
}

int certificate_days_left(SSL_CTX* context) {
  int days = 0;
  int seconds = 0;
  const X509* certificate = SSL_CTX_get0_certificate(context);
  if (certificate == nullptr || ASN1_TIME_diff(&days, &seconds, nullptr, X509_get0_notAfter(certificate)) != 1) return 0;
  return seconds < 0 && days == 0 ? -1 : days;
}
