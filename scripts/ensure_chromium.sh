#!/usr/bin/env bash
# Installs chromium, in which the HTML pages are tested, where it is missing, by apt-get as root. It never fails: where
# chromium can't be had, it says so in one line, and pytest skips the tests in a browser with that reason.
# Usage: scripts/ensure_chromium.sh
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then
        echo "the pages are tested in $(command -v "$name")"
        exit 0
    fi
done

install() {
    export DEBIAN_FRONTEND=noninteractive
    timeout 600 apt-get install -y -q --no-install-recommends chromium && return
    timeout 120 apt-get update -q && timeout 600 apt-get install -y -q --no-install-recommends chromium
}

if [[ $(id -u) -ne 0 ]]; then
    reason="only root may install it"
elif ! command -v apt-get >/dev/null; then
    reason="there is no apt-get to install it with"
elif install >&2; then
    echo "chromium was installed: the pages are tested in it"
    exit 0
else
    reason="apt-get could not install it"
fi
echo "the tests in a browser are left out: chromium is missing, and $reason"
