//! Documents as registries send them, good and bad.

use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Fills in the words that the documents below share.
fn json(text: &str) -> String {
    text.replace('\'', "\"")
        .replace("$A", A)
        .replace("$B", B)
        .replace("$CONFIG", "{'mediaType':'application/vnd.oci.image.config.v1+json','digest':'sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','size':2}")
        .replace('\'', "\"")
}

fn parse(text: &str, content_type: Option<&str>) -> Result<Document> {
    Document::parse(json(text).as_bytes(), content_type, "image x", &Limits::default())
}

/// Expects the kinds of the layers, or the text of the error.
#[track_caller]
fn check(text: &str, content_type: Option<&str>, expected: &str) {
    let found = match parse(text, content_type) {
        Ok(Document::Manifest(manifest)) => {
            let layers = manifest.layers.iter().map(|layer| format!("{:?}", layer.compression));
            format!("manifest {}", layers.collect::<Vec<_>>().join(" "))
        }
        Ok(Document::Index(index)) => format!("index {}", index.manifests.len()),
        Err(error) => error.to_string(),
    };
    assert!(found.starts_with(expected), "found {found:?}");
    assert!(found.len() < 500, "{} characters", found.len());
}

fn layer_of(media_type: &str) -> String {
    format!(
        "{{'schemaVersion':2,'config':$CONFIG,'layers':[{{'mediaType':'{media_type}','digest':'$B','size':7,'urls':['http://elsewhere/x']}}]}}"
    )
}

#[test]
fn every_spelling_of_a_layer_is_known() {
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", "manifest None"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "manifest Gzip"),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "manifest Zstd"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "manifest Gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "manifest Gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "manifest Zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar", "manifest None"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "manifest Gzip"),
    ] {
        check(&layer_of(media_type), None, expected);
    }
}

#[test]
fn an_unknown_layer_is_named() {
    check(
        &layer_of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
        None,
        &format!(
            "image x: layer {B}: has the type \"application/vnd.oci.image.layer.v1.tar+gzip+encrypted\"; known are"
        ),
    );
    check(&layer_of(&"x".repeat(100_000)), None, "image x: layer");
}

#[test]
fn a_document_is_one_of_the_two_kinds() {
    check("{'schemaVersion':2,'manifests':[]}", None, "index 0");
    check("{'schemaVersion':2,'manifests':[]}", Some("text/plain"), "index 0");
    check("{'schemaVersion':2,'config':$CONFIG,'layers':null}", Some(MANIFEST), "manifest");
    check(
        "{'schemaVersion':2,'manifests':[]}",
        Some("application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8"),
        "index 0",
    );
    check("{'schemaVersion':2}", None, "image x: is neither a manifest");
    check("{'schemaVersion':2,'layers':[]}", None, "image x: has no config");
    check("{}", None, "image x: schemaVersion must be 2");
    check("[]", None, "image x: invalid");
    check("", None, "image x: EOF");
    check("{'schemaVersion':2,'manifests':[]} x", None, "image x: trailing");
}

/// F-06.
#[test]
fn a_document_that_could_be_both_kinds_is_refused() {
    check("{'schemaVersion':2,'manifests':[],'layers':[]}", None, "image x: has the fields of a");
    check("{'schemaVersion':2,'manifests':[],'config':$CONFIG}", None, "image x: has the fields");
    check(
        "{'schemaVersion':2,'manifests':[],'mediaType':'application/vnd.oci.image.manifest.v1+json'}",
        None,
        "image x: has the shape of an index and the mediaType",
    );
    check("{'schemaVersion':2,'manifests':[]}", Some(MANIFEST), "image x: has the shape");
    check(
        "{'schemaVersion':2,'config':$CONFIG,'layers':[]}",
        Some(INDEX),
        "image x: has the shape",
    );
    check("{'schemaVersion':2,'manifests':[],'manifests':[]}", None, "image x: duplicate field");
}

#[test]
fn old_and_foreign_documents_are_told_apart() {
    check("{'schemaVersion':1,'fsLayers':[]}", None, "image x: is in docker's schema 1");
    check(
        "{'schemaVersion':2,'config':{'mediaType':'application/vnd.cncf.helm.config.v1+json','digest':'$A','size':2},'layers':[]}",
        None,
        "image x: is no container image but an artifact of type \"application/vnd.cncf.helm.config.v1+json\"",
    );
}

/// F-07.
#[test]
fn a_descriptor_with_a_bad_digest_is_refused() {
    for digest in ["sha256:../../x", "sha256:ab", "md5:00", "", &"a".repeat(1 << 20)] {
        check(
            &format!(
                "{{'schemaVersion':2,'manifests':[{{'mediaType':'x','digest':'{digest}','size':1}}]}}"
            ),
            None,
            "image x: manifests[0].digest: digest",
        );
    }
    check(
        "{'schemaVersion':2,'manifests':[{'mediaType':'x','digest':'$A','size':-1}]}",
        None,
        "image x: manifests[0].size: invalid value",
    );
}

#[test]
fn long_lists_are_refused() {
    let entry = "{'mediaType':'application/vnd.oci.image.layer.v1.tar','digest':'$A','size':1}";
    let list = vec![entry; 1001].join(",");
    check(
        &format!("{{'schemaVersion':2,'manifests':[{list}]}}"),
        None,
        "image x is over the limit of 1000 (limits.index_entries)",
    );
    check(
        &format!("{{'schemaVersion':2,'config':$CONFIG,'layers':[{list}]}}"),
        None,
        "image x is over the limit of 500 (limits.layers)",
    );
    check(
        &format!("{{'schemaVersion':2,'manifests':[],'x':'{}'}}", "x".repeat(4 << 20)),
        None,
        "image x is over the limit of 4 MiB (limits.manifest_bytes)",
    );
    check(&"[".repeat(100_000), None, "image x: ");
}

/// An index whose entries are `platform` words; the size tells them apart.
fn index_of(platforms: &[&str]) -> Index {
    let manifests = platforms.iter().zip(1..).map(|(platform, size)| Descriptor {
        media_type: MediaType::ImageManifest,
        digest: A.parse().unwrap(),
        size,
        platform: (!platform.is_empty()).then(|| platform.parse().unwrap()),
        annotations: BTreeMap::new(),
    });
    Index { manifests: manifests.collect() }
}

#[track_caller]
fn check_choice(host: &str, platforms: &[&str], expected: &str) {
    let index = index_of(platforms);
    let found = match index.choose(&host.parse().unwrap(), "image x") {
        Ok(entry) => {
            let position = usize::try_from(entry.size).unwrap() - 1;
            format!("{position} {}", platforms[position])
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(found, expected);
}

#[test]
fn the_best_platform_is_chosen() {
    check_choice("linux/amd64", &["linux/arm64", "linux/amd64"], "1 linux/amd64");
    check_choice(
        "linux/amd64/v2",
        &["linux/amd64/v3", "linux/amd64", "linux/amd64/v2"],
        "2 linux/amd64/v2",
    );
    check_choice("linux/amd64/v3", &["linux/386", "linux/x86_64"], "1 linux/x86_64");
    check_choice("linux/amd64/v3", &["linux/386"], "0 linux/386");
    check_choice("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], "1 linux/arm64/v8");
    check_choice("linux/arm64", &["linux/arm/v5", "linux/arm/v7"], "1 linux/arm/v7");
    check_choice(
        "linux/arm/v7",
        &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"],
        "1 linux/arm/v6",
    );
    check_choice("linux/arm/v7", &["linux/arm"], "0 linux/arm");
    check_choice("linux/riscv64", &["linux/riscv64"], "0 linux/riscv64");
    check_choice("linux/amd64", &["linux/amd64", "linux/amd64"], "0 linux/amd64");
    check_choice("linux/amd64", &[""], "0 ");
}

#[test]
fn a_missing_platform_lists_what_there_is() {
    check_choice(
        "linux/amd64",
        &["windows/amd64", "linux/arm/v7", "unknown/unknown"],
        "image x for linux/amd64 (there are: windows/amd64, linux/arm/v7) does not exist",
    );
    check_choice(
        "linux/amd64",
        &["", ""],
        "image x for linux/amd64 (there are: none) does not exist",
    );
    check_choice(
        "linux/arm/v6",
        &["linux/arm/v7"],
        "image x for linux/arm/v6 (there are: linux/arm/v7) does not exist",
    );
}

#[test]
fn a_platform_reads_as_it_was_written() {
    for text in ["linux/amd64", "linux/arm/v7"] {
        assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
    }
    for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b"] {
        assert!(text.parse::<Platform>().is_err(), "{text:?}");
    }
    assert!(Platform::host().rank(&Platform::host()) == Some(0));
}

fn config(text: &str) -> Result<ImageConfig> {
    ImageConfig::parse(json(text).as_bytes(), "config x", &Limits::default())
}

#[test]
fn a_config_is_read_with_all_its_fields() {
    let config = config(
        "{'created':'2026-01-01T00:00:00Z','os':'linux','architecture':'arm','variant':'v7',
          'config':{'User':'1000:www','Env':['PATH=/bin'],'Entrypoint':['/x'],'Cmd':'lone','WorkingDir':'/w',
          'Volumes':{'/data':{}},'Labels':{'a':'b','c':null},'StopSignal':'SIGQUIT','ExposedPorts':{'80/tcp':{}},
          'Healthcheck':{'Test':['NONE']},'OnBuild':null},
          'rootfs':{'type':'layers','diff_ids':['$A','$B']},
          'history':[{'created_by':'RUN x','empty_layer':true},{}]}",
    )
    .unwrap();
    assert_eq!(config.platform.to_string(), "linux/arm/v7");
    assert_eq!(config.user, "1000:www");
    assert_eq!(config.env, ["PATH=/bin"]);
    assert_eq!(config.entrypoint, ["/x"]);
    assert_eq!(config.cmd, ["lone"]);
    assert_eq!(config.working_dir, "/w");
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.labels["a"], "b");
    assert_eq!(config.labels["c"], "");
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert!(config.history[0].empty_layer && !config.history[1].empty_layer);
    assert_eq!(config.diff_ids.len(), 2);
}

#[test]
fn a_config_may_write_null_or_nothing() {
    let nulls = config(
        "{'created':null,'os':null,'architecture':null,'variant':null,'config':{'User':null,'Env':null,'Entrypoint':null,
          'Cmd':null,'WorkingDir':null,'Volumes':null,'Labels':null,'StopSignal':null,'ExposedPorts':null},
          'rootfs':{'type':null,'diff_ids':null},'history':null}",
    )
    .unwrap();
    assert_eq!(nulls, config("{}").unwrap());
    assert_eq!(nulls, config("{'config':null,'rootfs':null,'history':[]}").unwrap());
}

#[test]
fn a_config_that_cannot_run_is_refused() {
    for (text, expected) in [
        ("{'config':{'Env':['A=\\u0000']}}", "config x: config.Env must not hold a NUL"),
        ("{'config':{'Env':'A'}}", "config x: config.Env: invalid type"),
        ("{'rootfs':{'type':'other'}}", "config x: rootfs.type must be \"layers\""),
        ("{'rootfs':{'diff_ids':['sha256:1']}}", "config x: rootfs.diff_ids[0]: digest"),
        ("null", "config x: invalid type"),
    ] {
        let error = config(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[track_caller]
fn check_runs(text: &str, host: &str, expected: Option<&str>) {
    let found = config(text).unwrap().runs_on(&host.parse().unwrap(), "image x");
    assert_eq!(found.err().map(|error| error.to_string()).as_deref(), expected);
}

#[test]
fn an_image_for_another_machine_is_refused() {
    check_runs("{'os':'linux','architecture':'amd64'}", "linux/amd64/v3", None);
    check_runs("{}", "linux/amd64", None);
    check_runs("{'os':'linux','architecture':'arm64','variant':'v8.2'}", "linux/arm64", None);
    check_runs(
        "{'os':'linux','architecture':'s390x'}",
        "linux/amd64",
        Some("image x: is for linux/s390x, and this machine is linux/amd64"),
    );
    check_runs(
        "{'os':'windows','architecture':'amd64'}",
        "linux/amd64",
        Some("image x: is for windows/amd64, and this machine is linux/amd64"),
    );
}

#[test]
fn layers_and_diff_ids_are_counted() {
    let Document::Manifest(manifest) =
        parse(&layer_of("application/vnd.oci.image.layer.v1.tar"), None).unwrap()
    else {
        panic!("a manifest");
    };
    assert_eq!(manifest.layer_bytes(), 7);
    let with = |ids: &str| config(&format!("{{'rootfs':{{'diff_ids':[{ids}]}}}}")).unwrap();
    assert!(manifest.matches(&with("'$A'"), "image x").is_ok());
    for ids in ["", "'$A','$B'"] {
        let error = manifest.matches(&with(ids), "image x").unwrap_err().to_string();
        assert!(error.starts_with("image x: has 1 layers, and its config"), "{error}");
    }
}

/// oci-spec reads the same fields of a full document.
#[test]
fn oci_spec_reads_the_same_config() {
    let text = json(
        "{'created':'2026-01-01T00:00:00Z','os':'linux','architecture':'amd64',
          'config':{'User':'u','Env':['A=b'],'Entrypoint':['/x'],'Cmd':['y'],'WorkingDir':'/w','Labels':{'a':'b'},'StopSignal':'SIGQUIT'},
          'rootfs':{'type':'layers','diff_ids':['$A']},'history':[]}",
    );
    let ours = config(&text).unwrap();
    let theirs: oci_spec::image::ImageConfiguration = serde_json::from_str(&text).unwrap();
    let run = theirs.config().clone().unwrap();
    assert_eq!(run.env().as_ref(), Some(&ours.env));
    assert_eq!(run.entrypoint().as_ref(), Some(&ours.entrypoint));
    assert_eq!(run.cmd().as_ref(), Some(&ours.cmd));
    assert_eq!(run.user().as_deref(), Some(ours.user.as_str()));
    assert_eq!(run.working_dir().as_deref(), Some(ours.working_dir.as_str()));
    assert_eq!(run.stop_signal(), &ours.stop_signal);
    assert_eq!(theirs.rootfs().diff_ids()[0], ours.diff_ids[0].to_string());
}
