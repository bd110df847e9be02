#!/usr/bin/env bash
# images.sh NAME…   builds real multi-layer OCI layouts under $LAB/images: nginx node pysci-v1 pysci-v2 pytf readall bulk pause
#
# Made of Debian, PyPI and npm packages, so that no image registry is needed. Layers are gzip as pigz writes it. Every image
# has a Cmd that prints READY or, for nginx, answers on 127.0.0.1:8088. Every layer is cached under $LAB/layers and built
# once; delete its folder there, and its two files under $LAB/blobs, to build it again.
# Root. Needs mmdebstrap, pigz, python3 and, for node, npm, for pause busybox-static.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LAB=${LAB:-$HOME/.cache/floe-lab}
mkdir -p "$LAB"/{layers,images,blobs,mnt,work}

base() { # the bottom layer: a minimal Debian
  [ -e "$LAB/layers/base/.done" ] && return
  rm -rf "$LAB/layers/base"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates "${SUITE:-bookworm}" "$LAB/layers/base"
  rm -rf "$LAB"/layers/base/var/lib/apt/lists/* "$LAB"/layers/base/var/cache/apt/archives/*.deb
  touch "$LAB/layers/base/.done"
}

# layer NAME "top:…:base" SCRIPT   runs SCRIPT in a chroot over the stacked layers and keeps the difference
layer() {
  local name=$1 below=$2 script=$3 dir=$LAB/layers/$1 lower
  [ -e "$dir/.done" ] && return
  rm -rf "$dir" "$LAB/work/$name"; mkdir -p "$dir" "$LAB/mnt/$name" "$LAB/work/$name"
  lower=$(sed "s#\([^:]*\)#$LAB/layers/\1#g" <<<"$below")
  # A mount namespace of its own: whatever happens in here, nothing stays mounted. policy-rc.d keeps packages from starting
  # services; pip in a chroot wants the certificates under both of its names for them.
  SCRIPT=$script ROOT=$LAB/mnt/$name DIR=$dir LOWER=$lower WORKDIR=$LAB/work/$name unshare -m bash -euc '
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$DIR,workdir=$WORKDIR" "$ROOT"
    mkdir -p "$ROOT/.lab"
    for t in dev tmp .lab; do mount -t tmpfs tmpfs "$ROOT/$t"; done
    mount -t proc proc "$ROOT/proc"
    for d in null zero full random urandom tty; do touch "$ROOT/dev/$d"; mount --bind "/dev/$d" "$ROOT/dev/$d"; done
    cp /etc/ssl/certs/ca-certificates.crt "$ROOT/.lab/ca.crt"
    [ ! -e /etc/resolv.conf ] || cp /etc/resolv.conf "$ROOT/etc/resolv.conf" 2>/dev/null || true
    printf "#!/bin/sh\nexit 101\n" >"$ROOT/usr/sbin/policy-rc.d"; chmod +x "$ROOT/usr/sbin/policy-rc.d"
    export DEBIAN_FRONTEND=noninteractive HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export PIP_CERT=/.lab/ca.crt SSL_CERT_FILE=/.lab/ca.crt REQUESTS_CA_BUNDLE=/.lab/ca.crt CURL_CA_BUNDLE=/.lab/ca.crt
    env -u PIP_FIND_LINKS chroot "$ROOT" /bin/bash -euc "$SCRIPT"
    rm -rf "$ROOT"/usr/sbin/policy-rc.d "$ROOT"/var/lib/apt/lists/* "$ROOT"/var/cache/apt/*.bin "$ROOT"/var/cache/apt/archives/*.deb "$ROOT"/root/.cache
    umount -R "$ROOT/dev" "$ROOT/tmp" "$ROOT/proc" "$ROOT/.lab"; rmdir "$ROOT/.lab"; umount "$ROOT"'
  touch "$dir/.done"
}

pack() { python3 "$here/ocipack.py" "$@"; } # pack LAYOUT TAG CONFIG-JSON layer… (bottom to top)
ENVS='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","PYTHONDONTWRITEBYTECODE=1","TF_CPP_MIN_LOG_LEVEL=2"]'

nginx_layers() {
  layer nginx base 'apt-get update -q; apt-get install -qy --no-install-recommends nginx'
  layer nginx-app nginx:base 'mkdir -p /srv/www; seq 1 200000 >/srv/www/big.txt; echo READY >/srv/www/index.html
    printf "daemon off;\nerror_log stderr;\npid /tmp/nginx.pid;\nevents {}\nhttp { access_log off; server { listen 127.0.0.1:8088; root /srv/www; } }\n" >/etc/nginx/nginx.conf'
}
nginx() {
  nginx_layers
  pack nginx v1 "{\"Cmd\":[\"/usr/sbin/nginx\"],$ENVS,\"WorkingDir\":\"/\"}" base nginx nginx-app
}
readall() { # the layers of nginx, and a start that reads every byte of them: the worst case of starting lazily
  nginx_layers
  pack readall v1 "{\"Cmd\":[\"sh\",\"-c\",\"find / -xdev -type f -exec cat {} + >/dev/null && echo READY\"],$ENVS,\"WorkingDir\":\"/\"}" base nginx nginx-app
}
node() {
  layer node base 'apt-get update -q; apt-get install -qy --no-install-recommends nodejs'
  if [ ! -e "$LAB/layers/node-app/.done" ]; then # npm runs outside: the image's own node stays Debian's
    rm -rf "$LAB/layers/node-app"; mkdir -p "$LAB/layers/node-app/app"
    (cd "$LAB/layers/node-app/app" && npm init -y >/dev/null && npm install --ignore-scripts --no-audit --no-fund --loglevel=error \
      typescript@5.6 eslint@9 webpack@5 webpack-cli@5 next@14 react@18 react-dom@18 lodash@4 express@4 jest@29 prettier@3 rxjs@7 date-fns@3 \
      @babel/core@7 @babel/preset-env@7 @mui/material@5 @mui/icons-material@5 @emotion/react@11 @emotion/styled@11 @types/node@22)
    touch "$LAB/layers/node-app/.done"
  fi
  pack node v1 "{\"Cmd\":[\"/usr/bin/node\",\"-e\",\"require('typescript');console.log('READY')\"],$ENVS,\"WorkingDir\":\"/app\"}" base node node-app
}
python_layer() { layer python base 'apt-get update -q; apt-get install -qy --no-install-recommends python3 python3-pip'; }
pysci() { # pysci VERSION "requirements"
  python_layer
  layer "pysci-$1" python:base "pip install -q --break-system-packages --no-compile $2"
  layer pysci-app "pysci-v1:python:base" 'mkdir -p /app; printf "import numpy, scipy.optimize, pandas, sklearn.linear_model\nprint(\"READY\")\n" >/app/main.py'
  pack "pysci-$1" "$1" "{\"Cmd\":[\"python3\",\"/app/main.py\"],$ENVS,\"WorkingDir\":\"/app\"}" base python "pysci-$1" pysci-app
}
pytf() {
  python_layer
  layer pytf python:base 'pip install -q --break-system-packages --no-compile tensorflow-cpu==2.16.1'
  layer pytf-app pytf:python:base 'mkdir -p /app; printf "import tensorflow as tf\nassert int(tf.reduce_sum(tf.ones([4,4]))) == 16\nprint(\"READY\")\n" >/app/main.py'
  pack pytf v1 "{\"Cmd\":[\"python3\",\"/app/main.py\"],$ENVS,\"WorkingDir\":\"/app\"}" base python pytf pytf-app
}

bulk() { # one file of 500 MB that no compressor makes smaller
  if [ ! -e "$LAB/layers/bulk/.done" ]; then
    mkdir -p "$LAB/layers/bulk"
    head -c 500000000 /dev/urandom >"$LAB/layers/bulk/bulk.bin"
    touch "$LAB/layers/bulk/.done"
  fi
  pack bulk v1 "{\"Cmd\":[\"none\"]}" bulk
}

pause() { # what the sandbox of a pod runs: it sleeps
  if [ ! -e "$LAB/layers/pause/.done" ]; then
    rm -rf "$LAB/layers/pause"; mkdir -p "$LAB/layers/pause"/{bin,dev,etc,proc,sys}
    cp /bin/busybox "$LAB/layers/pause/bin/busybox"
    touch "$LAB/layers/pause/.done"
  fi
  pack pause v1 '{"Cmd":["/bin/busybox","sleep","infinity"],"Env":["PATH=/bin"]}' pause
}

umask 022 # modes are part of the layers
base
for image in "$@"; do
  case $image in
    nginx | node | pytf | readall | bulk | pause) "$image" ;;
    pysci-v1) pysci v1 'numpy==1.26.2 scipy==1.11.4 pandas==2.1.3 scikit-learn==1.3.2' ;;
    pysci-v2) pysci v1 'numpy==1.26.2 scipy==1.11.4 pandas==2.1.3 scikit-learn==1.3.2'
              pysci v2 'numpy==1.26.4 scipy==1.12.0 pandas==2.2.1 scikit-learn==1.4.1.post1' ;;
    *) echo "images.sh: no image '$image'" >&2; exit 2 ;;
  esac
done
