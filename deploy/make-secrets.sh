#!/bin/sh
# Writes the secrets that deploy/ names, each in a file of its own; those that are there stay.
# Usage: make-secrets.sh [FOLDER], by default the folder secrets/ beside this script.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
cd "$folder"

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

for name in ray_token service_token postgres_password; do
    [ -e "$name" ] || random 32 > "$name"
done
if ! [ -e s3_credentials ] || ! [ -e s3_identities ]; then  # they hold the same key
    key=$(random 10) secret=$(random 20)
    rm -f s3_credentials s3_identities
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$key" "$secret" > s3_credentials
    printf '{"identities": [{"name": "explorer", "actions": ["Admin"], "credentials": [%s]}]}\n' \
        "{\"accessKey\": \"$key\", \"secretKey\": \"$secret\"}" > s3_identities
fi
own="ray_token service_token postgres_password s3_credentials s3_identities"
chmod 400 $own
# A container's processes run as user 1000 and see these files with their owner and mode.
if [ "$(id -u)" = 0 ]; then
    chown 1000:1000 . $own
elif [ "$(id -u)" != 1000 ]; then
    echo "for docker compose, give the files to its user: sudo chown -R 1000:1000 $PWD" >&2
    echo "from then on sudo reads them, in the commands of deploy/README.md too" >&2
fi
