#!/usr/bin/env bash
# An MLflow tracking server on PostgreSQL: a login for everyone, artifacts through the server, loopback unless told otherwise.
# Every setting is a variable of the environment (deploy/README.md); passwords come from files, and none stands in a command line.
#
#   deploy/server.sh            check the settings, then be the server
#   deploy/server.sh upgrade    bring the tables to the version of MLflow that is installed
set -euo pipefail
umask 077

folder=${TRACKING_FOLDER:-$PWD/tracking-server}
database=${TRACKING_DATABASE:-postgresql+psycopg://mlflow@127.0.0.1:5432/mlflow}
artifacts=${TRACKING_ARTIFACTS:-$folder/artifacts}
host=${TRACKING_HOST:-127.0.0.1}
port=${TRACKING_PORT:-5000}
allowed=${TRACKING_ALLOWED_HOSTS:-${TRACKING_BIND:+127.0.0.1:*,localhost:*}}
secrets=${TRACKING_SECRETS:-$folder/secrets}
python=${PYTHON:-python3}

refuse() {
  echo "error: $*" >&2
  exit 2
}

# secret NAME: print the line that the file of this name holds; one that is missing is made up, of 43 characters
secret() {
  local file=$secrets/$1
  if [ ! -e "$file" ]; then
    "$python" -c 'import secrets; print(secrets.token_urlsafe(32))' >"$file.$$" && mv -n "$file.$$" "$file" && rm -f "$file.$$"
    echo "made $file" >&2
  fi
  [ -s "$file" ] || refuse "$file is empty; put a password there, or remove the file to have one made"
  head -n 1 "$file"
}

check_settings() {
  case ${database,,} in
    *\?*password*) refuse "TRACKING_DATABASE holds a password after its ?, which ps would show; put the role's into $secrets/database" ;;
  esac
  case $database in
    postgresql+psycopg://*:*@*) refuse "TRACKING_DATABASE holds a password, which ps would show; put it into $secrets/database" ;;
    postgresql+psycopg://*) ;;
    *) refuse "TRACKING_DATABASE must be postgresql+psycopg://user@host:port/database" ;;
  esac
  local name=HOST seen=$host
  if [ -n "${TRACKING_BIND:-}" ]; then # in a container, which listens everywhere inside
    name=BIND seen=$TRACKING_BIND
  fi
  case $seen in
    127.* | localhost | ::1) ;;
    *) [ -n "${TRACKING_ALLOWED_HOSTS:-}" ] ||
      refuse "TRACKING_$name=$seen is open to others: say by TRACKING_ALLOWED_HOSTS=name:port,... how browsers and clients call it" ;;
  esac
}

check_database() {
  "$python" - "${database/+psycopg/}" <<'PYTHON' || exit 2
import sys

import psycopg

try:
    psycopg.connect(sys.argv[1], connect_timeout=5).close()
except psycopg.Error as error:
    sys.exit(f"error: {sys.argv[1]}: {' '.join(str(error).split())}")
PYTHON
}

# MLflow's login reads its database from a file only, where a % stands for itself when doubled. It would hash the password
# at every request, a quarter of a second each; a changed one goes on to work for a minute.
write_login() {
  cat >"$folder/login.ini" <<INI
[mlflow]
database_uri = ${database//%/%%}
default_permission = ${TRACKING_PERMISSION:-READ}
admin_username = ${TRACKING_ADMIN:-admin}
auth_cache_ttl_seconds = 60
INI
}

mkdir -p "$folder" "$secrets"
check_settings
if [ -e "$secrets/database" ]; then
  PGPASSWORD=$(secret database)
  export PGPASSWORD
fi
check_database
write_login
MLFLOW_AUTH_ADMIN_PASSWORD=$(secret admin)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret cookies)
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_AUTH_CONFIG_PATH=$folder/login.ini MLFLOW_BACKEND_STORE_URI=$database MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # for judges of language models: nine processes, seven of which outlive a SIGTERM for a while

case ${1:-start} in
  upgrade)
    "$python" -m mlflow db upgrade "$database"
    exec "$python" -m mlflow.server.auth db upgrade --url "$database"
    ;;
  start) ;;
  *) refuse "unknown word $1: nothing, or upgrade" ;;
esac

options=(--app-name basic-auth --host "$host" --port "$port" --workers "${TRACKING_WORKERS:-2}" --artifacts-destination "$artifacts")
[ -z "$allowed" ] || options+=(--allowed-hosts "$allowed")
[ -z "${TRACKING_ORIGINS:-}" ] || options+=(--cors-allowed-origins "$TRACKING_ORIGINS")
echo "the server: http://$host:$port, artifacts in $artifacts; the password of ${TRACKING_ADMIN:-admin} is in $secrets/admin"
exec "$python" -m mlflow server "${options[@]}"
