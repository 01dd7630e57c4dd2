#!/bin/sh
# Makes the database in /data once, and serves it on the socket in /socket alone.
set -eu
if [ ! -s /data/pg/PG_VERSION ]; then
  rm -rf /data/pg.part
  initdb --pgdata=/data/pg.part --username=database --auth=peer --encoding=UTF8 --locale=C.UTF-8
  printf 'local all all peer\n' >/data/pg.part/pg_hba.conf
  printf "CREATE ROLE arion LOGIN;\nCREATE DATABASE arion OWNER arion;\n" |
    postgres --single -D /data/pg.part postgres >/dev/null
  mv /data/pg.part /data/pg
fi
exec postgres -D /data/pg -c listen_addresses= -c unix_socket_directories=/socket
