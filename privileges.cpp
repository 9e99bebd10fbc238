#include "privileges.hpp"

#include <grp.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "net.hpp"

namespace {

const passwd* find_user(const std::string& user) {
  if (!user.empty()) return getpwnam(user.c_str());
  if (const char* caller = std::getenv("SUDO_UID"); caller != nullptr && *caller != '\0') {
    if (const auto id = static_cast<uid_t>(std::strtoul(caller, nullptr, 10)); id != 0) return getpwuid(id);
  }
  return getpwnam("nobody");
}

bool set_policy(int policy) {
  sched_param parameters{};
  parameters.sched_priority = sched_get_priority_min(policy);
  return pthread_setschedparam(pthread_self(), policy, &parameters) == 0;
}

}  // namespace

RealTime::RealTime() : granted_(set_policy(SCHED_RR)) {}

RealTime::~RealTime() {
  if (granted_) set_policy(SCHED_OTHER);
}

std::optional<StartProblem> drop_root(const std::string& user) {
  if (geteuid() != 0) return std::nullopt;
  const passwd* target = find_user(user);
  if (target == nullptr) return StartProblem{true, "--user: there is no user " + (user.empty() ? "nobody" : user) + " on this machine."};
  // Somebody who asks for root by name gets it.
  if (target->pw_uid == 0) return std::nullopt;
  if (setgroups(0, nullptr) != 0 || setresgid(target->pw_gid, target->pw_gid, target->pw_gid) != 0 ||
      setresuid(target->pw_uid, target->pw_uid, target->pw_uid) != 0) {
    return StartProblem{false, "Root could not be given up: " + errno_text(errno) + "."};
  }
  if (setuid(0) == 0 || seteuid(0) == 0 || getuid() != target->pw_uid || getgid() != target->pw_gid) {
    return StartProblem{false, "Root could not be given up for good."};
  }
  // What is started from here gains no rights by set-user-id files.
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
#ifdef __SANITIZE_ADDRESS__
  // The sanitizer's search for leaks attaches to the process, which giving up root has forbidden.
  prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
#endif
  // libpq looks for a password file in the home of the user that it runs as.
  setenv("HOME", target->pw_dir, 1);
  return std::nullopt;
}
