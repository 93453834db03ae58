package dev.wirepost.client;

import java.time.Duration;

/**
 * Why a connection could not be opened.
 *
 * @param reason for the log
 * @param code the close code, or 1006
 * @param slowly only a corrected declaration or a new credential helps
 * @param forgetToken the resume token is of no use any more
 * @param retryAfter what the answer asked for, or null
 */
record NotOpened(String reason, int code, boolean slowly, boolean forgetToken, Duration retryAfter) {
    static final int BROKEN = 1006;

    static NotOpened broken(String reason) {
        return new NotOpened(reason, BROKEN, false, false, null);
    }

    static NotOpened closed(int code) {
        return new NotOpened("closed with " + code + " before welcome", code, code == 3003 || code == 4010,
                code == 3000, null);
    }

    static NotOpened refused(String what, int status, Duration retryAfter) {
        boolean slowly = status >= 400 && status < 500 && status != 408 && status != 429;
        return new NotOpened(what + " was answered with HTTP " + status, BROKEN, slowly, false, retryAfter);
    }

    /** An upgrade: 401 asks for a new ticket there. */
    static NotOpened upgrade(int status, Duration retryAfter) {
        NotOpened refused = refused("the upgrade", status, retryAfter);
        return status == 401 ? new NotOpened(refused.reason(), BROKEN, false, true, retryAfter) : refused;
    }

    /** Without the URL: its ticket is a secret. */
    static NotOpened noUrl() {
        return new NotOpened("the token call gave no connection URL (wss://…/socket/…)", BROKEN, true, true, null);
    }
}
