// The two routes that relay an answer of Ollama: /llmchat/ and /llmprompt/.
#pragma once

#include "handlers.hpp"

void handle_llmchat(Services& services, httplib::Response& response);
void handle_llmprompt(Services& services, httplib::Response& response);
