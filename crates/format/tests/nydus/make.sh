#!/bin/sh
# Makes the vectors of this folder: make.sh NYDUS-IMAGE OUTPUT. Converts as pkg/converter/tool/builder.go of nydus-snapshotter does.
set -eu
image=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
python3 "$here/make.py" "$out"
cd "$out"

create() { # NAME TAR FLAGS...
    name=$1 tar=$2
    shift 2
    echo / | "$image" create --log-level warn --prefetch-policy fs --whiteout-spec none --chunk-size 0x4000 \
        --type tar-rafs --bootstrap "$name.boot" --blob "$name.blob" "$@" "$tar"
}
create zstd base.tar --compressor zstd
create lz4 base.tar --compressor lz4_block --digester sha256
create none top.tar --compressor none
create batch base.tar --compressor zstd --batch-size 0x4000

# Three layers, each with all that a blob can have, merged.
layer() { # NAME TAR FLAGS...
    name=$1 tar=$2
    shift 2
    echo / | "$image" create --log-level warn --prefetch-policy fs --whiteout-spec none --chunk-size 0x4000 \
        --type tar-rafs --blob-inline-meta --features blob-toc --blob "$name.blob" "$@" "$tar"
}
merge() { # NAME BLOB...
    name=$1
    shift
    boots= digests= sizes=
    for blob; do
        python3 "$here/boot.py" "$blob.blob" "$blob.inner"
        digest=$(sha256sum "$blob.blob" | cut -d' ' -f1)
        boots="$boots $blob.inner" digests="$digests,$digest" sizes="$sizes,$(stat -c %s "$blob.blob")"
    done
    # shellcheck disable=SC2086
    echo / | "$image" merge --log-level warn --prefetch-policy fs --bootstrap "$name.boot" $boots \
        --blob-digests "${digests#,}" --blob-sizes "${sizes#,}"
}
layer base base.tar --compressor zstd --batch-size 0x4000
layer middle middle.tar --compressor lz4_block
layer top top.tar --compressor zstd
merge merged base middle top

# The same in version 5.
v5() { # NAME TAR FLAGS...
    name=$1 tar=$2
    shift 2
    create "$name" "$tar" --fs-version 5 "$@"
}
v5 zstd5 base.tar --compressor zstd
v5 lz45 base.tar --compressor lz4_block --digester sha256
v5 none5 top.tar --compressor none
for name in base middle top; do
    echo / | "$image" create --log-level warn --prefetch-policy fs --whiteout-spec none --chunk-size 0x4000 \
        --type tar-rafs --fs-version 5 --blob-inline-meta --blob "${name}5.blob" --compressor zstd "$name.tar"
done
merge merged5 base5 middle5 top5

# What stays a tar.gz, and is only entered elsewhere: a blob beside each that says where.
ref() { # NAME
    "$image" create --log-level warn --type targz-ref --blob-inline-meta --features blob-toc --blob "$1.ref" "$1.gz"
    python3 "$here/boot.py" "$1.ref" "$(sha256sum "$1.gz" | cut -d' ' -f1)"
}
sum() {
    sha256sum "$1" | cut -d' ' -f1
}
ref base
ref big
"$image" merge --log-level warn --bootstrap refs.boot "$(sum base.gz)" "$(sum big.gz)" \
    --blob-digests "$(sum base.ref),$(sum big.ref)" \
    --blob-sizes "$(stat -c %s base.ref),$(stat -c %s big.ref)"
rm -f -- *.inner "$(sum base.gz)" "$(sum big.gz)"
