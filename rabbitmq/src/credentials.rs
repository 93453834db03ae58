//! User and password, from a URI or from files that a rotation replaces.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Secret;

/// A user and the password that is valid now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

impl Login {
    /// A user and its password.
    pub fn new(user: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self { user: user.into(), password: password.into() }
    }
}

/// Files whose content replaces the user name or the password. They are read at each use, so that a rotated Secret needs no restart.
/// White space at the ends of a file does not count. Default: no file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// File with the user name.
    pub user: Option<PathBuf>,
    /// File with the password.
    pub password: Option<PathBuf>,
}

/// A credential file could not be read. A retry may help: a mounted Secret is away for a moment while it is exchanged.
#[derive(Debug, thiserror::Error)]
#[error("cannot read credentials from {}: {source}", .file.display())]
pub struct CredentialsError {
    /// The file.
    pub file: PathBuf,
    /// What the operating system reports.
    pub source: io::Error,
}

impl CredentialFiles {
    /// The login with the parts that files replace. Blocks for as long as it takes to read two small files.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn apply(&self, login: Login) -> Result<Login, CredentialsError> {
        let Self { user, password } = self;
        Ok(Login {
            user: user.as_deref().map(read).transpose()?.unwrap_or(login.user),
            password: password.as_deref().map(read).transpose()?.map_or(login.password, Secret::from),
        })
    }

    /// The first file that can't be read now, for a check of settings.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<(), CredentialsError> {
        self.apply(Login::default()).map(drop)
    }
}

fn read(file: &Path) -> Result<String, CredentialsError> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(CredentialsError { file: file.to_owned(), source }),
    }
}

/// The user of a program: a login, and files that replace parts of it.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// For what no file replaces.
    pub login: Login,
    /// Take precedence.
    pub files: CredentialFiles,
}

impl Credentials {
    /// This login, always.
    pub fn fixed(user: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self { login: Login::new(user, password), files: CredentialFiles::default() }
    }

    /// What these files contain.
    pub fn from_files(user: PathBuf, password: PathBuf) -> Self {
        Self { login: Login::default(), files: CredentialFiles { user: Some(user), password: Some(password) } }
    }

    /// The login that is valid now.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn read(&self) -> Result<Login, CredentialsError> {
        self.files.apply(self.login.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_takes_effect_at_the_next_use() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "one\n").unwrap();
        let files = CredentialFiles { user: None, password: Some(file.clone()) };
        let credentials = Credentials { login: Login::new("user", "none"), files };
        assert_eq!(credentials.read().unwrap(), Login::new("user", "one"));
        fs::write(&file, "two").unwrap();
        assert_eq!(credentials.read().unwrap(), Login::new("user", "two"));
        fs::remove_file(&file).unwrap();
        assert_eq!(credentials.read().unwrap_err().file, file);
    }

    #[test]
    fn debug_output_contains_no_password() {
        let shown = format!("{:?}", Credentials::fixed("me", "hunter2"));
        assert!(shown.contains("me") && !shown.contains("hunter2"), "{shown}");
    }
}
