//! Bytes as a layer to be recoded: whatever a format can hold comes back from it as the tar it would be without, and
//! once more recoded it is the same.
#![no_main]

use convert::Expected;
use convert::recode::{RecodeError, Recoded, Recoding, Target, recode};
use format::{DiffId, Digest};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut dice = fuzz::Dice(data);
    let mode = dice.byte();
    let mut tar = dice.0.to_vec();
    if mode & 1 == 1 {
        fuzz::seal(&mut tar);
    }
    let blob = if mode & 2 == 2 { zstd::bulk::compress(&tar, 1).expect("zstd") } else { tar.clone() };
    let diff_id = DiffId::new(Digest::of(&tar));
    // A plain tar may begin as something else does, and then is not the layer expected.
    let Ok((plain, _)) = to(Target::Zstd, &blob, diff_id) else { return };
    for target in [Target::EStargz, Target::ZstdChunked] {
        match to(target, &blob, diff_id) {
            Ok((there, packed)) => {
                let (back, _) = to(Target::Zstd, &packed, there.diff_id).expect("what was made is a layer");
                assert_eq!(back.diff_id, plain.diff_id, "back from {target:?}");
                let (again, _) = to(target, &packed, there.diff_id).expect("the same once more");
                assert_eq!(again, there, "{target:?} of itself");
            }
            Err(RecodeError::Inexpressible { .. } | RecodeError::Limit { .. }) => {}
            Err(error) => panic!("{target:?}: {error}"),
        }
    }
});

fn to(target: Target, blob: &[u8], diff_id: DiffId) -> Result<(Recoded, Vec<u8>), RecodeError> {
    let expected = Expected { blob: Digest::of(blob), diff_id };
    let recoding = Recoding { target, level: Some(1), blob_size: blob.len() as u64, threads: 1 };
    let mut out = Vec::new();
    recode(blob, &expected, &recoding, &mut out).map(|said| (said, out))
}
