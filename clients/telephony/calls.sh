#!/bin/sh
# Registers a call with agogic and prints its UUID, for extension 101 of extensions.conf.
# AGOGIC is the server's address, AGOGIC_API_KEY its key, if it has one.
set -eu
server=${AGOGIC:-http://127.0.0.1:8790}
call=$(cat /proc/sys/kernel/random/uuid)
curl --silent --fail --max-time 5 --output /dev/null \
    --header "Authorization: Bearer ${AGOGIC_API_KEY:-none}" --header "Content-Type: application/json" \
    --data "{\"uuid\": \"$call\"}" "$server/telephony/audiosocket/calls"
printf '%s' "$call"
