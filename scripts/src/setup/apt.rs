//! Debian packages without root and without touching the system: apt with a private state and an empty package status.
//!
//! The empty status makes the closure of a package hold everything, the C library included, so that what is
//! extracted runs from a folder of its own. The mirror, proxies and keys are those of the machine's apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, output, watched};
use crate::progress::{Step, megabytes};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const UPDATE_LIMIT: Duration = Duration::from_secs(300);
const FETCH_LIMIT: Duration = Duration::from_secs(1800);
/// Parts of packages that no program here reads.
const UNUSED: [&str; 5] = [
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/info",
    "./usr/share/lintian",
];

/// What to download.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// The packages and all that they depend on, from this release.
    Closure(&'a str, &'a [&'a str]),
    /// These packages alone.
    Only(&'a [&'a str]),
}

/// The archive could not be reached; nothing else that needs it will do better.
#[derive(Debug)]
pub struct NotReached(
    /// What could not be had, and what to look at.
    pub String,
);

impl std::fmt::Display for NotReached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A private apt state for some suites of the Debian archive.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Makes a private state in `dir` and fetches the lists of `suites`.
    ///
    /// # Errors
    /// There is no apt, its configuration names no Debian archive, or the lists cannot be fetched or verified.
    pub fn open(dir: &Path, suites: &[&str]) -> Result<Self> {
        if process::find_program("apt-get").is_none() || process::find_program("dpkg-deb").is_none()
        {
            bail!(
                "apt-get and dpkg-deb are needed to fetch Debian packages and are not in PATH: use a Debian 12 or 13 machine"
            );
        }
        for sub in ["state/lists/partial", "cache/archives/partial", "etc/empty"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let mirror = mirror()?;
        let lines: String = suites
            .iter()
            .map(|suite| format!("deb {KEYS} {mirror} {suite} main\n", KEYS = signed_by()))
            .collect();
        fs::write(dir.join("etc/sources.list"), lines)?;
        fs::write(dir.join("apt.conf"), configuration(dir)?)?;
        let archive = Self {
            dir: dir.to_path_buf(),
        };
        let mut step = Step::begin(format!("package lists of Debian {}", suites.join(", ")));
        let lists = dir.join("state/lists");
        watched(archive.apt("apt-get").args(["update", "-q"]), UPDATE_LIMIT, || step.at(size_of(&lists), None))
            .context(NotReached("the lists of the Debian archive cannot be fetched: is the network up? Does `apt-get update` work?".to_owned()))?;
        step.done(&megabytes(size_of(&lists)));
        Ok(archive)
    }

    /// Returns the versions of a package that the archive has, newest first.
    ///
    /// # Errors
    /// apt fails.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.apt("apt-cache").args(["madison", package]))?;
        let mut versions: Vec<String> = text
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect();
        versions.dedup();
        Ok(versions)
    }

    /// Returns the packages that a package depends on directly.
    ///
    /// # Errors
    /// apt fails.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.apt("apt-cache").args(["depends", package]))?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads packages, verified by apt, and returns the files.
    ///
    /// # Errors
    /// apt does not know them, or the download fails.
    pub fn fetch(&self, what: &str, want: Want<'_>) -> Result<Vec<PathBuf>> {
        let plan = output(self.fetcher(want).args(["-qq", "--print-uris"]))
            .with_context(|| format!("apt finds no way to get {what}"))?;
        let files: Vec<(String, u64)> = plan.lines().filter_map(planned).collect();
        let total = files.iter().map(|(_, size)| size).sum();
        let mut step = Step::begin(format!(
            "{what}: download {} package(s), {}",
            files.len(),
            megabytes(total)
        ));
        let archives = self.dir.join("cache/archives");
        let before = size_of(&archives);
        watched(self.fetcher(want).arg("-q"), FETCH_LIMIT, || {
            step.at(size_of(&archives).saturating_sub(before), Some(total))
        })
        .with_context(|| NotReached(format!("{what} cannot be downloaded: is the network up?")))?;
        step.done("downloaded and verified");
        Ok(files
            .into_iter()
            .map(|(name, _)| archives.join(name))
            .collect())
    }

    fn fetcher(&self, want: Want<'_>) -> Command {
        let mut apt = self.apt("apt-get");
        match want {
            Want::Closure(release, packages) => apt
                .args([
                    "install",
                    "-y",
                    "--download-only",
                    "--no-install-recommends",
                    "-t",
                    release,
                ])
                .args(packages),
            Want::Only(packages) => apt.arg("download").args(packages),
        };
        apt
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C")
            .current_dir(self.dir.join("cache/archives"));
        apt
    }
}

/// Extracts packages into one folder, without their documentation.
///
/// # Errors
/// A package is damaged or the disk is full.
pub fn extract(what: &str, packages: &[PathBuf], into: &Path) -> Result<()> {
    let step = Step::begin(format!("{what}: extract {} package(s)", packages.len()));
    fs::create_dir_all(into)?;
    for package in packages {
        extract_parts(package, into, &[])
            .with_context(|| format!("cannot extract {}", package.display()))?;
    }
    step.done(&format!("{} on disk", megabytes(size_of(into))));
    Ok(())
}

/// Extracts the parts of a package that match one of `patterns` (tar's wildcards; none: everything).
///
/// # Errors
/// The package is damaged, nothing matches, or the disk is full.
pub fn extract_parts(package: &Path, into: &Path, patterns: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "-x",
        "--keep-directory-symlink",
        "--no-same-owner",
        "--delay-directory-restore",
        "-C",
    ])
    .arg(into);
    tar.args(UNUSED.iter().map(|path| format!("--exclude={path}")));
    tar.arg("--wildcards").args(patterns);
    let mut data = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let pipe = data.stdout.take().context("no pipe from dpkg-deb")?;
    let unpacked = tar.stdin(pipe).status()?;
    if !data.wait()?.success() || !unpacked.success() {
        bail!("dpkg-deb or tar failed; their messages are above");
    }
    Ok(())
}

/// Sums the sizes of the files below a folder, in bytes.
#[must_use]
pub fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

/// One line of `--print-uris`: `'URI' FILE SIZE [HASH]`.
fn planned(line: &str) -> Option<(String, u64)> {
    let mut words = line.strip_prefix('\'')?.split(' ').skip(1);
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

/// The address of the Debian archive, from the machine's own apt.
fn mirror() -> Result<String> {
    let format = "$(CREATED_BY)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)";
    let targets = output(
        Command::new("apt-get")
            .args(["indextargets", "--format", format])
            .env_remove("APT_CONFIG"),
    )?;
    pick_mirror(&targets).context(
        "the machine's apt configuration names no Debian archive (apt-get indextargets shows none): \
         add one to /etc/apt/sources.list.d",
    )
}

/// Picks the archive of a release itself, not of its updates, its security fixes or of another vendor.
fn pick_mirror(targets: &str) -> Option<String> {
    const RELEASES: [&str; 8] = [
        "trixie",
        "bookworm",
        "stable",
        "oldstable",
        "forky",
        "testing",
        "sid",
        "bullseye",
    ];
    let release_of = |line: &str| {
        let fields: Vec<&str> = line.split('|').collect();
        let [created_by, release, component, uri] = fields.as_slice() else {
            return None;
        };
        let rank = RELEASES.iter().position(|known| known == release)?;
        (*created_by == "Packages" && *component == "main").then(|| (rank, (*uri).to_owned()))
    };
    targets
        .lines()
        .filter_map(release_of)
        .min()
        .map(|(_, uri)| uri)
}

fn signed_by() -> String {
    if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}]")
    } else {
        String::new()
    }
}

/// Private folders, and of the machine's settings only how it reaches the network.
fn configuration(dir: &Path) -> Result<String> {
    let system = output(
        Command::new("apt-config")
            .arg("dump")
            .env_remove("APT_CONFIG"),
    )?;
    let network = system.lines().filter(|line| {
        [
            "Acquire::http",
            "Acquire::https",
            "Acquire::ftp",
            "Acquire::Retries",
            "Acquire::Check-",
            "Acquire::ForceIPv",
        ]
        .iter()
        .any(|wanted| line.starts_with(wanted))
    });
    let network: String = network.map(|line| format!("{line}\n")).collect();
    let dir = dir
        .to_str()
        .filter(|dir| !dir.contains(['"', '\n']))
        .context("the cache's path is not plain text: set HOME")?;
    Ok(format!(
        "{network}\
         Dir::State \"{dir}/state\";\nDir::State::status \"{dir}/status\";\nDir::Cache \"{dir}/cache\";\n\
         Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"{dir}/etc/empty\";\n\
         Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{dir}/etc/empty\";\n\
         Dir::Etc::sourcelist \"{dir}/etc/sources.list\";\nDir::Etc::sourceparts \"{dir}/etc/empty\";\n\
         APT::Sandbox::User \"root\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
         APT::Get::AllowUnauthenticated \"false\";\nAcquire::AllowInsecureRepositories \"false\";\n\
         Acquire::Languages \"none\";\nAcquire::GzipIndexes \"true\";\nAcquire::Retries \"2\";\n\
         APT::Update::Error-Mode \"any\";\n\
         Binary::apt::APT::Keep-Downloaded-Packages \"true\";\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_a_release_not_of_security_or_another_vendor() {
        let targets = "Packages|nodistro|main|http://vendor.example/\n\
                       Packages|bookworm-security|main|http://mirror.example/debian-security/\n\
                       DEP-11|bookworm|main|http://dep.example/\n\
                       Packages|bookworm|non-free|http://nonfree.example/\n\
                       Packages|bookworm|main|http://mirror.example/debian/\n";
        assert_eq!(
            pick_mirror(targets).as_deref(),
            Some("http://mirror.example/debian/")
        );
        assert_eq!(
            pick_mirror("Packages|nodistro|main|http://vendor.example/\n"),
            None
        );
    }

    #[test]
    fn a_planned_download_has_a_file_name_and_a_size() {
        let line = "'http://mirror.example/b_1%3a1_arm64.deb' b_1%3a1_arm64.deb 847552 SHA256:c8";
        assert_eq!(
            planned(line),
            Some(("b_1%3a1_arm64.deb".to_owned(), 847_552))
        );
        assert_eq!(planned("Reading package lists..."), None);
    }
}
